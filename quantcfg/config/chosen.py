"""A config that names what a comparison has found: the same file with rules of single ops at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantcfg.config.load import Config
from quantcfg.config.nodes import NOWHERE, Entry, Items, Leaf, Node, Table, as_table
from quantcfg.config.patterns import is_exact
from quantcfg.config.rules import Rule, in_order
from quantcfg.config.spec import QConfigSpec

_STAGE = "calib"
_COMPARING = ("compare", "compare_by", "compare_per")


def with_chosen(config: Config, specs: Mapping[str, QConfigSpec]) -> Config:
    """``config`` with a rule for each op of ``specs``, and without the comparison that found them.

    The rules are those of exact names, written out, and the last of the calibration: each replaces what
    decided the op before.
    """
    kept = [
        rule for rule in config.stages[_STAGE] if not (rule.kind == "module_name" and rule.pattern in specs)
    ]
    rules = [Rule("module_name", op, spec) for op, spec in specs.items()]
    return replace(
        config,
        tree=_grafted(config.tree, {op: spec_fields(spec) for op, spec in specs.items()}),
        stages={**config.stages, _STAGE: in_order((*kept, *rules))},
    )


def can_be_named(op: str) -> bool:
    """Whether a rule can speak of this op alone: its name is no pattern."""
    return bool(op) and is_exact(op) and all(op.split("."))


def spec_fields(spec: QConfigSpec) -> dict[str, Any]:
    """A qconfig as a file writes it out."""
    fields: dict[str, Any] = {}
    for name, value in spec.values().items():
        section, _, parameter = name.partition(".")
        if parameter:
            fields.setdefault(section, {})[parameter] = value
        else:
            fields[name] = value
    return fields


def _grafted(tree: Table, rules: Mapping[str, Any]) -> Table:
    section = as_table(tree.get(_STAGE))
    qconfig = as_table(section.get("qconfig"))
    named = as_table(qconfig.get("module_name"))
    left = {key: entry for key, entry in named.entries.items() if key not in rules}
    named = Table(left | {key: _entry(value) for key, value in rules.items()}, named.place)
    section = _with(section, "qconfig", _with(qconfig, "module_name", named))
    kept = {key: entry for key, entry in section.entries.items() if key not in _COMPARING}
    return _with(tree, _STAGE, Table(kept, section.place))


def _with(table: Table, key: str, node: Node) -> Table:
    return Table({**table.entries, key: Entry(NOWHERE, node)}, table.place)


def _entry(value: Any) -> Entry:
    return Entry(NOWHERE, _node(value))


def _node(value: Any) -> Node:
    if isinstance(value, dict):
        return Table({key: _entry(item) for key, item in value.items()}, NOWHERE)
    if isinstance(value, list | tuple):
        return Items(tuple(_node(item) for item in value), NOWHERE)
    return Leaf(value, NOWHERE)
