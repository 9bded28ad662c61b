"""A plan as a table: one row per group of ops that are treated alike, or one per op."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantcfg.config.suggest import counted, listing
from quantcfg.preparation.plan import OpRow, Plan, TensorPlan
from quantcfg.render.names import summarize
from quantcfg.render.tables import add_numbers, cell, new_table, print_beside, print_facts, print_table
from quantcfg.render.text import percent

_KIB = 1024
_WIDE = 110  # columns from which on the reasons stand in the table
_Notes = dict[str, int]
"""Reasons and their numbers."""
_MOST = 5  # pairs that are printed
_NAMES = 10  # columns


@dataclass(frozen=True, slots=True)
class _Kind:
    """What ops of one group have in common."""

    role: str
    qconfig: str
    activation: str
    weight: str
    because: str


@dataclass(frozen=True, slots=True)
class Header:
    """What a plan is made from, as the command line names it."""

    model: str
    configs: tuple[str, ...]
    overrides: tuple[str, ...]


def print_plan(console: Console, plan: Plan, header: Header, *, expand: bool) -> None:
    """Print the ops of ``plan``, its coverage and what was never run."""
    print_facts(console, _heading(plan, header), width=_NAMES)
    console.print()
    notes: _Notes | None = {} if console.width < _WIDE else None
    print_table(console, _expanded(plan.rows, notes) if expand else _grouped(plan.rows, notes))
    console.print()
    if notes:
        print_beside(console, [(f"{number:>2}", text) for text, number in notes.items()], width=3)
        console.print()
    print_beside(console, _summary(plan), width=_NAMES)


def _heading(plan: Plan, header: Header) -> list[tuple[str, str]]:
    first, *others = header.configs
    config = f"{first}, with {listing(others)}" if others else first
    lines = [
        (
            "model",
            f"{header.model} ({plan.model_class}), stage {plan.stage}, {counted(len(plan.rows), 'op')}",
        ),
        ("config", config),
    ]
    return lines + [("--set", override) for override in header.overrides]


def _grouped(rows: Sequence[OpRow], notes: _Notes | None) -> Table:
    groups: dict[_Kind, list[OpRow]] = {}
    for row in rows:
        groups.setdefault(_kind(row, expand=False), []).append(row)
    table = _table("ops", "n", "params", narrow=notes is not None)
    for kind, members in groups.items():
        names, params = summarize([row.name for row in members]), sum(row.params for row in members)
        _add(table, notes, kind, names, str(len(members)), f"{params:,}" if params else "")
    return table


def _expanded(rows: Sequence[OpRow], notes: _Notes | None) -> Table:
    table = _table("op", "params", narrow=notes is not None)
    for row in rows:
        _add(table, notes, _kind(row, expand=True), row.name, f"{row.params:,}" if row.params else "")
    return table


def _table(name: str, *numbers: str, narrow: bool) -> Table:
    table = new_table()
    table.add_column("role", no_wrap=True)
    table.add_column("qconfig", no_wrap=True)
    table.add_column(name, overflow="fold")
    add_numbers(table, numbers)
    for tensor in ("output, weight",) if narrow else ("activation", "weight"):
        table.add_column(tensor, no_wrap=True)
    table.add_column("" if narrow else "because", overflow="fold")
    return table


def _add(table: Table, notes: _Notes | None, kind: _Kind, *middle: str) -> None:
    """Add a row; on a narrow terminal its reason is a number, which is explained beneath the table."""
    start, because = [cell(text) for text in (kind.role, kind.qconfig, *middle)], kind.because
    if notes is None:
        table.add_row(*start, cell(kind.activation), cell(kind.weight), cell(because))
    else:
        number = str(notes.setdefault(because, len(notes) + 1)) if because else ""
        table.add_row(*start, _stacked(kind), number)


def _stacked(kind: _Kind) -> Text:
    """Output and weight beneath each other, for terminals too narrow to have both on a line."""
    named = {"o": kind.activation, "w": kind.weight}
    return Text("\n").join(cell(f"{name} {text}") for name, text in named.items() if text)


def _kind(row: OpRow, *, expand: bool) -> _Kind:
    because = _because(row, expand=expand)
    return _Kind(row.role, row.qconfig, _tensor(row.activation), _tensor(row.weight), because)


def _tensor(plan: TensorPlan | None) -> str:
    if plan is None:
        return ""
    fake_quant = "" if plan.fake_quant == "fake_quant" else f" {plan.fake_quant}"
    per_channel = "/ch" if plan.qscheme.startswith("per_channel") else ""
    return f"{plan.dtype}{per_channel} {plan.observer}{fake_quant}"


def _because(row: OpRow, *, expand: bool) -> str:
    """The rule where a rule decided, the reason where something else did, both where both did."""
    reason = row.reason if expand else _without_name(row.reason)
    return "; ".join(part for part in (reason, _rule(row) if row.qconfig or not reason else "") if part)


def _rule(row: OpRow) -> str:
    """The rule with the bare name of its file: which folder it is in, the command line says."""
    if row.place is None:
        return row.rule
    where = f"{row.place.file}:{row.place.line}"
    return row.rule.replace(where, f"{Path(row.place.file).name}:{row.place.line}")


def _without_name(reason: str) -> str:
    """``folded into block1.conv1`` is ``folded`` in a group; that an op is inside a chain, its role says."""
    verb, into, _ = reason.partition(" into ")
    return {"fused": "", "folded": "folded"}.get(verb, reason) if into else reason


def _summary(plan: Plan) -> list[tuple[str, str]]:
    cover = plan.coverage
    macs, params = percent(cover.macs_share, 1), percent(cover.params_share, 1)
    shares = f"{macs} of multiply-accumulates, {params} of parameters"
    sizes = f"{cover.float_size_bytes / _KIB:,.1f} KiB in float, {cover.size_bytes / _KIB:,.1f} KiB quantized"
    lines = [
        ("coverage", f"{shares}, {cover.quantized_ops} of {counted(cover.ops, 'op')}"),
        ("size", f"{sizes}, {cover.weight_bits:.2f} bits per weight on average"),
    ]
    if plan.never_run:
        lines.append(("never run", summarize(plan.never_run)))
    if plan.called_often:
        lines.append(("shared", _shared(plan.called_often)))
    lines += [("not fused", f"{pair.first} + {pair.second}: {pair.reason}") for pair in plan.unfused[:_MOST]]
    if len(plan.unfused) > _MOST:
        lines.append(("", f"and {len(plan.unfused) - _MOST} more pairs; --format json has them all"))
    return lines + _adjusted(plan)


def _shared(called_often: Sequence[tuple[str, int]]) -> str:
    """Modules that are called as often as each other, together."""
    groups: dict[int, list[str]] = {}
    for name, calls in called_often:
        groups.setdefault(calls, []).append(name)
    return ", ".join(
        f"{summarize(names)} ({calls} calls{' each' if len(names) > 1 else ''})"
        for calls, names in groups.items()
    )


def _adjusted(plan: Plan) -> list[tuple[str, str]]:
    """What was changed for the target of the export."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for change in plan.adjustments:
        groups.setdefault((change.slot, change.before, change.after), []).append(change.op)
    return [
        ("adjusted", f"{slot}s {before} to {after}: {summarize(ops)}")
        for (slot, before, after), ops in groups.items()
    ]
