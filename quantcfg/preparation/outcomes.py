"""Rules that win and still decide nothing, because their ops are float anyway or part of a chain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from quantcfg.config.collect import Findings
from quantcfg.config.layers import RULE_TABLES
from quantcfg.config.nodes import shortened
from quantcfg.config.rules import Decision, Rule, RuleSet
from quantcfg.config.spec import FakeQuantSpec
from quantcfg.config.suggest import listing
from quantcfg.errors import Diagnostic, Place
from quantcfg.preparation.assign import Assignment, Assignments, Role
from quantcfg.preparation.record import Recording

Assign = Callable[[Sequence[Decision]], Assignments]
MAX_NAMED = 3


@dataclass(frozen=True, slots=True)
class Treatment:
    """What happens at one op: the row of the resolved table. ``inputs``: quantizers on arguments."""

    name: str
    role: str
    output: FakeQuantSpec | None
    weight: FakeQuantSpec | None
    inputs: tuple[tuple[str, FakeQuantSpec], ...]


def treatments(recording: Recording, assignments: Assignments) -> list[Treatment]:
    """The resolved table: one row per op, in the order they ran."""
    return [_treatment(row, recording, assignments) for row in assignments.rows]


def _treatment(row: Assignment, recording: Recording, assignments: Assignments) -> Treatment:
    sources = ((recording.values[edge.value], assignments.inputs[edge.value]) for edge in row.edges)
    inputs = tuple((source.name or source.kind, spec) for source, spec in sources)
    return Treatment(row.site.name, row.role.value, row.output, row.weight, inputs)


def check_outcomes(
    rules: RuleSet,
    recording: Recording,
    decisions: Sequence[Decision],
    assignments: Assignments,
    *,
    assign: Assign,
    told: Collection[Place | None],
) -> list[Diagnostic]:
    """Warnings that nothing is quantized, or about rules without which every op would be treated the same.

    Args:
        rules: the rules that were resolved.
        recording: what ran.
        decisions: one per site, as the rules alone decide.
        assignments: what became of them.
        assign: makes assignments of other decisions, to see what a rule changes.
        told: places of rules that there is a finding about already.
    """
    findings = Findings(dict(rules.sources))
    winners = [decision.winner for decision in decisions if decision.spec is not None]
    if winners and not _quantizes(assignments):
        advice = "`quantcfg plan` gives the reason for each op"
        place = winners[0].place if winners[0] else None
        findings.warning("QC203", "nothing of this model is quantized", place, help=advice)
        return list(findings.warnings)
    table = treatments(recording, assignments)
    for rule, won in _idle(rules, decisions, assignments, told):
        without = [decision.without(rule) for decision in decisions]
        if treatments(recording, assign(without)) == table:
            _report(rule, [assignments.rows[index] for index in won], findings)
    return list(findings.warnings)


def _quantizes(assignments: Assignments) -> bool:
    return any(row.output or row.weight for row in assignments.rows) or any(assignments.inputs.values())


def _idle(
    rules: RuleSet,
    decisions: Sequence[Decision],
    assignments: Assignments,
    told: Collection[Place | None],
) -> Iterator[tuple[Rule, list[int]]]:
    """Rules that win ops, none of which got a quantizer; with the positions of those ops."""
    won: dict[int, list[int]] = {}
    busy: set[int] = set()
    for index, (decision, row) in enumerate(zip(decisions, assignments.rows, strict=True)):
        for rule in decision.contributors:
            won.setdefault(id(rule), []).append(index)
            if row.weight is not None or row.output is not None:
                busy.add(id(rule))
    for rule in rules.rules:
        known = rule.kind not in RULE_TABLES or rule.place is None or rule.place in told
        if not known and id(rule) in won and id(rule) not in busy:
            yield rule, won[id(rule)]


def _report(rule: Rule, rows: Sequence[Assignment], findings: Findings) -> None:
    pattern = shortened(rule.pattern)
    if all(row.role is Role.FUSED for row in rows):
        findings.warning(
            "QC214",
            f"the rule `{pattern}` matches only what fusion absorbs",
            rule.place,
            label=f"wins {_named(rows)}: {rows[0].reason}",
            help="remove it, or name the op that the chain belongs to",
        )
    else:
        findings.warning(
            "QC213",
            f"the rule `{pattern}` matches only what has no quantizer of its own",
            rule.place,
            label=f"wins {_named(rows)}: {rows[0].reason}",
            help="remove it",
        )


def _named(rows: Sequence[Assignment]) -> str:
    return listing([f"`{row.site.name}`" for row in rows], MAX_NAMED)
