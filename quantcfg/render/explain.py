"""Why an op is treated as it is, or what a rule does, as text."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from quantcfg.config.catalogue import slot_text, value_text
from quantcfg.config.contest import FieldOrigin
from quantcfg.errors import Place
from quantcfg.render.names import summarize
from quantcfg.render.tables import cell, new_table, print_line, print_table
from quantcfg.stages.explaining import OpExplanation, RuleExplanation, WithoutWinner


def print_explanation(console: Console, explained: OpExplanation | RuleExplanation) -> None:
    """Print what is known about an op or a rule."""
    if isinstance(explained, RuleExplanation):
        _print_rule(console, explained)
    else:
        _print_op(console, explained)


def place_text(place: Place | None) -> str:
    """Line and column with the bare name of the file: which folder it is in, the command line says."""
    return f"{Path(place.file).name}:{place.line}:{place.column}" if place else ""


def _print_op(console: Console, op: OpExplanation) -> None:
    made = op.treatment
    reason = f", {op.reason}" if op.reason else ""
    print_line(console, f"{op.name}, {op.module_type}, stage {op.stage}: {op.qconfig}")
    print_line(console, f"  {made.role}{reason}")
    for note in op.notes:
        print_line(console, f"  {note}")
    if made.output:
        print_line(console, f"  output  {slot_text(made.output)}")
    if made.weight:
        print_line(console, f"  weight  {slot_text(made.weight)}")
    for name, spec in made.inputs:
        print_line(console, f"  input   {slot_text(spec)}, of {name}")
    console.print()
    print_table(console, _rules(op)) if op.rules else print_line(console, "no rule speaks of it")
    if op.fields:
        console.print()
        print_table(console, _fields(op.fields))
    if op.without_winner:
        console.print()
        _print_without(console, op.without_winner, op)


def _rules(op: OpExplanation) -> Table:
    table = new_table("", "rule", "", "at", "gives", "because")
    for rule in op.rules:
        cells = (rule.verdict, rule.kind, rule.pattern, place_text(rule.place), rule.gives, rule.why)
        table.add_row(*map(cell, cells))
    return table


def _fields(fields: tuple[FieldOrigin, ...]) -> Table:
    table = new_table("field", "value", "from", "at")
    table.columns[0].no_wrap = True
    for item in fields:
        table.add_row(*map(cell, (item.field, value_text(item.value), item.origin, place_text(item.place))))
    return table


def _print_without(console: Console, without: WithoutWinner, op: OpExplanation) -> None:
    print_line(console, f"without {op.rules[0].kind} {op.rules[0].pattern}".rstrip() + f": {without.qconfig}")
    print_line(console, f"  by {without.rule}")
    for change in without.changes:
        print_line(console, f"  {change.field}: {value_text(change.now)} -> {value_text(change.then)}")
    if not without.changes:
        print_line(console, "  nothing changes")


def _print_rule(console: Console, rule: RuleExplanation) -> None:
    name = f"{rule.kind} {rule.pattern}".rstrip()
    print_line(console, f"{name}, {place_text(rule.place)}, stage {rule.stage}: {rule.gives}")
    print_line(console, f"  wins   {_counted(rule.wins)}")
    print_line(console, f"  decides alone  {_counted(rule.changes)}")
    losses: dict[str, list[str]] = {}
    for loss in rule.loses:
        losses.setdefault(loss.to, []).append(loss.name)
    for to, names in losses.items():
        print_line(console, f"  loses  {_counted(names)}, to {to}")


def _counted(names: list[str] | tuple[str, ...]) -> str:
    return f"{len(names)}: {summarize(list(names))}" if names else "nothing"
