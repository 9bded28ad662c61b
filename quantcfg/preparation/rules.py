"""Rules in code: the reference's ``qconfig_dict``, and the check of rules against a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from quantcfg.config.findings import check_rules
from quantcfg.config.rules import Classes, Decision, Rule, RuleSet, Target, in_order
from quantcfg.config.spec import FakeQuantSpec, QConfigSpec
from quantcfg.errors import ConfigError, Diagnostic, PrepareError
from quantcfg.preparation.targets import classes_of, type_names
from quantcfg.qconfig import QConfig, spec_from_qconfig

_KEYS = ("", "module_type", "module_name")


def rules_from_dict(qconfig_dict: Mapping[str, Any]) -> RuleSet:
    """The rules of a ``qconfig_dict``, in both of its forms: dicts, or lists of (key, qconfig) pairs.

    Raises:
        PrepareError: another key, or a value that is neither a `QConfig` nor None.
    """
    for key in qconfig_dict:
        if key not in _KEYS:
            raise PrepareError(
                f"unknown key '{key}' in qconfig_dict; known: '', 'module_type', 'module_name'"
            )
    return RuleSet(in_order(tuple(_rules(qconfig_dict))))


def _rules(qconfig_dict: Mapping[str, Any]) -> Iterator[Rule]:
    if "" in qconfig_dict:
        yield Rule("global", "", _spec("", qconfig_dict[""]))
    for module_type, qconfig in dict(qconfig_dict.get("module_type") or {}).items():
        name = type_names(module_type)[0] if isinstance(module_type, type) else str(module_type)
        yield Rule("module_type", name, _spec(name, qconfig))
    for name, qconfig in dict(qconfig_dict.get("module_name") or {}).items():
        yield Rule("module_name", name, _spec(name, qconfig))


def _spec(key: str, qconfig: Any) -> QConfigSpec | None:
    if qconfig is None:
        return None
    if not isinstance(qconfig, QConfig):
        raise PrepareError(
            f"the value of '{key}' in qconfig_dict must be a QConfig or None (got {type(qconfig).__name__})",
            hint="make one with get_default_qconfig(...)",
        )
    return spec_from_qconfig(qconfig)


def default_activation(rules: RuleSet) -> FakeQuantSpec | None:
    """The activation of the global rule: for inputs of ops whose own output stays in 32 bits."""
    for rule in reversed(rules.rules):
        if rule.kind == "global":
            return rule.spec.activation if rule.spec is not None else None
    return None


def check(
    rules: RuleSet, model: nn.Module, targets: Sequence[Target], decisions: Sequence[Decision]
) -> tuple[Diagnostic, ...]:
    """Check the rules against the model; return the warnings.

    Raises:
        ConfigError: a rule matches nothing, or another count than expected.
    """
    findings = check_rules(rules, targets, decisions, idle_modules(model, targets))
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise ConfigError(errors)
    return tuple(findings)


def idle_modules(model: nn.Module, targets: Sequence[Target]) -> dict[str, Classes]:
    """The modules inside of which nothing ran, with every spelling of their classes."""
    ran = {path for target in targets for path, _ in target.chain}
    return {path: classes for path, classes in classes_of(model).items() if path not in ran}
