"""Rules in code: the reference's ``qconfig_dict``, and the check of rules against a model."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from quantcfg.config.findings import check_rules
from quantcfg.config.matching import NameIndex
from quantcfg.config.patterns import PatternError
from quantcfg.config.rules import Classes, Decision, Rule, RuleSet, Target, in_order
from quantcfg.config.spec import FakeQuantSpec, QConfigSpec
from quantcfg.errors import ConfigError, Diagnostic, PrepareError
from quantcfg.preparation.targets import classes_of, type_names
from quantcfg.qconfig import QConfig, spec_from_qconfig

_KEYS = ("", "module_type", "module_name")


def rules_from_dict(qconfig_dict: Mapping[str, Any]) -> RuleSet:
    """The rules of a ``qconfig_dict``, in both of its forms: dicts, or lists of (key, qconfig) pairs.

    Raises:
        PrepareError: another form or key, or a value that is neither a `QConfig` nor None.
    """
    _refuse_other_than_dict(qconfig_dict)
    for key in qconfig_dict:
        if key not in _KEYS:
            raise PrepareError(
                f"unknown key '{key}' in qconfig_dict; known: '', 'module_type', 'module_name'"
            )
    return RuleSet(in_order(tuple(_rules(qconfig_dict))))


def _rules(qconfig_dict: Mapping[str, Any]) -> Iterator[Rule]:
    if "" in qconfig_dict:
        yield Rule("global", "", _spec("", qconfig_dict[""]))
    for module_type, qconfig in _pairs(qconfig_dict, "module_type", "a class or its name", (type, str)):
        name = type_names(module_type)[0] if isinstance(module_type, type) else module_type
        yield Rule("module_type", name, _spec(name, qconfig))
    for name, qconfig in _pairs(qconfig_dict, "module_name", "a name", (str,)):
        _check_pattern(name, "qconfig_dict")
        yield Rule("module_name", name, _spec(name, qconfig))


def with_floats(rules: RuleSet, hybrid_dict: Mapping[str, Any], model: nn.Module) -> RuleSet:
    """``rules``, and one behind them for each module that a ``hybrid_dict`` leaves in float.

    It has the types of modules under ``"module_type"`` and names under ``"module_name"``. A type stands for
    the names of its modules: these beat what is said of types, and of what they are in.

    Raises:
        PrepareError: another form or key.
    """
    for key in hybrid_dict:
        if key not in _KEYS[1:]:
            raise PrepareError(f"unknown key '{key}' in hybrid_dict; known: 'module_type', 'module_name'")
    known = classes_of(model)
    more: list[Rule] = []
    for module_type in _listed(hybrid_dict, "module_type", "a class or its name", (type, str)):
        name = type_names(module_type)[0] if isinstance(module_type, type) else module_type
        paths = [path for path, classes in known.items() if path and name in classes[0]]
        more += [Rule("module_name", path, None) for path in paths]
        if not paths:
            more.append(Rule("module_type", name, None))
    for name in _listed(hybrid_dict, "module_name", "a name", (str,)):
        _check_pattern(name, "hybrid_dict")
        more.append(Rule("module_name", name, None))
    return RuleSet(in_order((*rules.rules, *more)), rules.sources)


def _listed(given: Mapping[str, Any], key: str, what: str, kinds: tuple[type, ...]) -> list[Any]:
    items = given.get(key) or []
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, kinds) for item in items):
        raise PrepareError(f"'{key}' in hybrid_dict must be a list, each {what} (got {reprlib.repr(items)})")
    return list(items)


def _pairs(
    qconfig_dict: Mapping[str, Any], key: str, what: str, kinds: tuple[type, ...]
) -> list[tuple[Any, Any]]:
    given = qconfig_dict.get(key) or {}
    try:
        pairs = list(dict(given).items())
    except (TypeError, ValueError):
        raise PrepareError(
            f"'{key}' in qconfig_dict must be a dict, or a list of pairs (got {reprlib.repr(given)})",
            hint=f"write each of them as ({what}, qconfig)",
        ) from None
    for name, _ in pairs:
        if not isinstance(name, kinds):
            raise PrepareError(f"a key of '{key}' in qconfig_dict must be {what} (got {name!r})")
    return pairs


def _check_pattern(name: str, where: str) -> None:
    try:
        NameIndex([(name, True)])
    except PatternError as error:
        raise PrepareError(f"the name '{name}' in {where}: {error}", hint=error.hint) from None


def _refuse_other_than_dict(given: Any) -> None:
    if isinstance(given, Mapping):
        return
    hint = 'write {"": qconfig} for one qconfig everywhere'
    if isinstance(given, (str, Path)):
        hint = f"load it first: load_config('{given}')"
    got = type(given).__name__
    raise PrepareError(f"a config must be what load_config gives, a RuleSet or a dict (got {got})", hint=hint)


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
