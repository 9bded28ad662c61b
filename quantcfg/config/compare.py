"""What differs in meaning between two configs: resolved rules and settings, however they are spelt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantcfg.config.catalogue import slot_text, value_text
from quantcfg.config.load import Config
from quantcfg.config.parameters import filled
from quantcfg.config.presets import STAGES
from quantcfg.config.rules import Rule
from quantcfg.config.spec import QConfigSpec, Scalar

ABSENT = "-"
BOTH = "both"
_NOT_SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("version", "extends", "qconfigs", "qconfig"), True),
    **{stage: {"qconfig"} for stage in STAGES},
}


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: ``what`` it is about, what each config says, and the stage it holds in."""

    what: str
    before: str
    after: str
    stage: str = BOTH


def compare_settings(a: Config, b: Config) -> list[Change]:
    """Differences beside the rules, defaults filled in: calibration, training, export, guards."""
    before, after = _settings(a), _settings(b)
    return [
        Change(key, before.get(key, ABSENT), after.get(key, ABSENT))
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key)
    ]


def compare_rules(a: Config, b: Config) -> list[Change]:
    """Differences of the resolved rules; one that holds in both stages is named once."""
    calib, qat = (list(_rule_changes(a, b, stage)) for stage in STAGES)
    shared = [change for change in calib if change in qat]
    return [
        *shared,
        *(Change(c.what, c.before, c.after, "calib") for c in calib if c not in shared),
        *(Change(c.what, c.before, c.after, "qat") for c in qat if c not in shared),
    ]


def _settings(config: Config) -> dict[str, str]:
    return dict(_flat(config.file.model_dump(exclude=_NOT_SETTINGS), ""))


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value_text(value)


def _rule_changes(a: Config, b: Config, stage: str) -> Iterator[Change]:
    before, after = _rules(a, stage), _rules(b, stage)
    for key in dict.fromkeys((*before, *after)):
        yield from _one_rule(f"{key[0]} {key[1]}".rstrip(), before.get(key), after.get(key))
    common = [key for key in before if key in after and _is_pattern(before[key])]
    moved = [key for key in after if key in before and _is_pattern(after[key])]
    if common != moved:
        yield Change("order of module_name", _names(common), _names(moved))
    if a.templates(stage) != b.templates(stage):
        yield Change("templates", _listed(a.templates(stage)), _listed(b.templates(stage)))


def _rules(config: Config, stage: str) -> dict[tuple[str, str], Rule]:
    """By kind and pattern. A global rule that leaves in float says what no global rule says."""
    rules = {(rule.kind, rule.pattern): rule for rule in config.rules(stage).rules}
    if (glob := rules.get(("global", ""))) and glob.spec is None:
        del rules["global", ""]
    return rules


def _one_rule(what: str, before: Rule | None, after: Rule | None) -> Iterator[Change]:
    if before is None or after is None:
        yield Change(what, rule_text(before), rule_text(after))
        return
    if before.spec is None or after.spec is None:
        if _inherits(before) != _inherits(after) or before.spec != after.spec:
            yield Change(what, rule_text(before), rule_text(after))
    else:
        for name, (old, new) in spec_changes(before.spec, after.spec).items():
            yield Change(f"{what}: {name}", old, new)
    for name in ("optional", "expect", "subclasses"):
        if (was := getattr(before, name)) != (now := getattr(after, name)):
            yield Change(f"{what}: {name}", value_text(was), value_text(now))


def _inherits(rule: Rule) -> dict[str, Scalar] | None:
    return None if rule.inherit is None else {name: item.value for name, item in rule.inherit}


def spec_changes(before: QConfigSpec, after: QConfigSpec) -> dict[str, tuple[str, str]]:
    """The fields, written out by either, that differ once defaults are filled in."""
    changes = field_changes(before, after, absent=ABSENT)
    return {name: (value_text(old), value_text(new)) for name, (old, new) in changes.items()}


def field_changes(
    before: QConfigSpec | None, after: QConfigSpec | None, *, absent: Scalar = None
) -> dict[str, tuple[Scalar, Scalar]]:
    """The same as plain values, ``absent`` where one has no such field; None as a qconfig has none at all."""
    old, new = (filled(spec).values() if spec else {} for spec in (before, after))
    written = (name for spec in (before, after) if spec for name in spec.values())
    return {
        name: (old.get(name, absent), new.get(name, absent))
        for name in dict.fromkeys(written)
        if old.get(name, absent) != new.get(name, absent)
    }


def rule_text(rule: Rule | None) -> str:
    """What a rule gives, on one line; ``-`` for no rule."""
    if rule is None:
        return ABSENT
    if rule.inherit is not None:
        changes = ", ".join(f"{name} {value_text(item.value)}" for name, item in rule.inherit)
        return f"inherit with {changes}"
    return spec_text(rule.spec)


def spec_text(spec: QConfigSpec | None) -> str:
    """A resolved qconfig on one line."""
    if spec is None:
        return "float"
    return f"activation {slot_text(spec.activation)}; weight {slot_text(spec.weight)}"


def _is_pattern(rule: Rule) -> bool:
    return rule.kind == "module_name" and not rule.exact


def _names(keys: list[tuple[str, str]]) -> str:
    return _listed(tuple(pattern for _, pattern in keys))


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or ABSENT
