"""The differences of two configs as a table, and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from quantcfg.config.catalogue import slot_text
from quantcfg.config.compare import BOTH, Change
from quantcfg.preparation.outcomes import Treatment
from quantcfg.render.names import summarize
from quantcfg.render.tables import cell, new_table, print_line, print_table
from quantcfg.stages.op_changes import OpChange

DIFF_VERSION = 1
FLOAT = "float"


def diff_dict(changes: Sequence[Change], ops: Sequence[OpChange] | None) -> dict[str, Any]:
    """The differences for machines; ``ops`` is null when no model was given."""
    return {
        "format_version": DIFF_VERSION,
        "equal": not changes and not ops,
        "changes": [asdict(change) for change in changes],
        "ops": None if ops is None else [asdict(change) for change in ops],
    }


def print_diff(
    console: Console, names: tuple[str, str], changes: Sequence[Change], ops: Sequence[OpChange]
) -> None:
    """Print what differs; ops that differ alike share a row."""
    if not changes and not ops:
        print_line(console, f"{names[0]} and {names[1]} mean the same")
    if changes:
        print_table(console, _changes(names, changes))
    if changes and ops:
        console.print()
    if ops:
        print_table(console, _ops(names, ops))


def _changes(names: tuple[str, str], changes: Sequence[Change]) -> Table:
    table = new_table("what", *names, "stage")
    for change in changes:
        stage = "" if change.stage == BOTH else change.stage
        table.add_row(*map(cell, (change.what, change.before, change.after, stage)))
    return table


def _ops(names: tuple[str, str], ops: Sequence[OpChange]) -> Table:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for change in ops:
        groups.setdefault((change.stage, *_differing(change)), []).append(change.name)
    table = new_table("ops", "n", *names, "stage")
    for (stage, before, after), members in groups.items():
        table.add_row(*map(cell, (summarize(members), str(len(members)), before, after, stage)))
    return table


def _differing(change: OpChange) -> tuple[str, str]:
    """What each config does, as far as the other does not, and the rule behind it."""
    old, new = _parts(change.before), _parts(change.after)
    names = [name for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)]
    before, after = (
        "; ".join(f"{name} {parts.get(name, FLOAT)}".strip() for name in names) for parts in (old, new)
    )
    return f"{before} ({change.rule_before})", f"{after} ({change.rule_after})"


def _parts(made: Treatment) -> dict[str, str]:
    parts = {"": made.role}
    if made.output:
        parts["output"] = slot_text(made.output)
    if made.weight:
        parts["weight"] = slot_text(made.weight)
    return parts | {f"input {name}": slot_text(spec) for name, spec in made.inputs}
