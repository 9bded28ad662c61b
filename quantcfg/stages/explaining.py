"""Why an op is treated as it is, and what a rule does: answers about one config on one model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from quantcfg.config.compare import field_changes, rule_text as given_text, spec_text
from quantcfg.config.contest import KINDS, Contender, FieldOrigin, contest, field_origins
from quantcfg.config.findings import nearest_name
from quantcfg.config.rules import Decision, Rule, RuleSet
from quantcfg.config.spec import Scalar
from quantcfg.config.suggest import listing, nearest
from quantcfg.errors import Place, UsageError
from quantcfg.preparation.assign import Assignment, rule_text
from quantcfg.preparation.outcomes import Treatment
from quantcfg.stages.survey import Outcome, Survey

EXPLANATION_VERSION = 1
RULE_PREFIX = "rule:"


@dataclass(frozen=True, slots=True)
class RuleLine:
    """A rule that speaks of an op. ``verdict``: won, beneath (the winner inherits from it) or lost."""

    verdict: str
    kind: str
    pattern: str
    place: Place | None
    gives: str
    matched: str
    why: str


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field that would be another one; None: there would be none."""

    field: str
    now: Scalar
    then: Scalar


@dataclass(frozen=True, slots=True)
class WithoutWinner:
    """What the rules would decide if the winner were not there."""

    qconfig: str
    rule: str
    changes: tuple[FieldChange, ...]


@dataclass(frozen=True, slots=True)
class OpExplanation:
    """One op: what happens to it, which rules speak of it, and where each field of its qconfig is from."""

    name: str
    stage: str
    module_type: str
    reason: str
    qconfig: str
    treatment: Treatment
    notes: tuple[str, ...]
    rules: tuple[RuleLine, ...]
    fields: tuple[FieldOrigin, ...]
    without_winner: WithoutWinner | None

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain data, for JSON."""
        return {"format_version": EXPLANATION_VERSION, "explained": "op"} | asdict(self)


@dataclass(frozen=True, slots=True)
class Loss:
    """An op that a rule matches and does not decide."""

    name: str
    to: str


@dataclass(frozen=True, slots=True)
class RuleExplanation:
    """One rule: the ops that it decides, those that it would decide but for another rule."""

    kind: str
    pattern: str
    stage: str
    place: Place | None
    gives: str
    wins: tuple[str, ...]
    changes: tuple[str, ...]
    loses: tuple[Loss, ...]

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain data, for JSON."""
        return {"format_version": EXPLANATION_VERSION, "explained": "rule"} | asdict(self)


def explain_name(surveyed: Survey, outcome: Outcome, name: str) -> OpExplanation | RuleExplanation:
    """Explain an op by its name, or a rule: ``rule:PATTERN``, ``rule:global``.

    Raises:
        UsageError: there is no such op or rule; the hint is the nearest.
    """
    if name.startswith(RULE_PREFIX):
        return _explain_rule(outcome, _find_rule(outcome.rules, name.removeprefix(RULE_PREFIX)))
    for index, target in enumerate(surveyed.targets):
        if target.name == name:
            return _explain_op(surveyed, outcome, index)
    raise _no_op(surveyed, name)


def _no_op(surveyed: Survey, name: str) -> UsageError:
    inside = [target.name for target in surveyed.targets if target.name.startswith(f"{name}.")]
    if inside:
        return UsageError(f"'{name}' is a module, not an op", hint=f"its ops are {listing(inside, 12)}")
    if name in dict(surveyed.model.named_modules()):
        return UsageError(f"no op ran inside of '{name}' on the example inputs")
    near, notes = nearest_name(name, surveyed.targets)
    hint = f"did you mean {near}? " if near else ""
    return UsageError(f"no op is called '{name}'", hint=hint + "; ".join(notes))


def _find_rule(rules: RuleSet, pattern: str) -> Rule:
    named = {rule.pattern or rule.kind: rule for rule in rules.rules}
    if pattern in named:
        return named[pattern]
    near = nearest(pattern, named)
    hint = f"did you mean {RULE_PREFIX}{near}?" if near else f"there are: {listing(named, 12)}"
    raise UsageError(f"no rule is written '{pattern}'", hint=hint)


def _explain_op(surveyed: Survey, outcome: Outcome, index: int) -> OpExplanation:
    target, decision, row = surveyed.targets[index], outcome.decisions[index], outcome.rows[index]
    winner = decision.winner
    return OpExplanation(
        name=target.name,
        stage=outcome.stage,
        module_type=surveyed.recording.types[row.site.path],
        reason=row.reason,
        qconfig=decision.spec.name if decision.spec else "float",
        treatment=outcome.table[index],
        notes=tuple(_notes(decision, row, outcome)),
        rules=tuple(_rule_line(item, decision) for item in contest(decision, target)),
        fields=tuple(field_origins(decision)),
        without_winner=_without(decision, winner) if winner else None,
    )


def _notes(decision: Decision, row: Assignment, outcome: Outcome) -> list[str]:
    final = row.decision
    if final.winner is not decision.winner:
        return [f"the output of its fused chain follows {rule_text(final.winner)}"]
    changes = [change for change in outcome.adjustments if change.op == row.site.name]
    if changes:
        return [f"the export target changes its {c.slot} from {c.before} to {c.after}" for c in changes]
    if final.spec is not None and final.spec != decision.spec:
        return [f"a template makes it {final.spec.name}: {spec_text(final.spec)}"]
    return []


def _rule_line(contender: Contender, decision: Decision) -> RuleLine:
    rule = contender.rule
    beneath = "beneath" if rule in decision.contributors else "lost"
    return RuleLine(
        verdict="won" if rule is decision.winner else beneath,
        kind=contender.kind,
        pattern=rule.pattern,
        place=rule.place,
        gives=_label(rule),
        matched=contender.matched,
        why=contender.why,
    )


def _label(rule: Rule) -> str:
    if rule.inherit is not None:
        return "inherit*"
    return rule.spec.name if rule.spec else "float"


def _without(decision: Decision, winner: Rule) -> WithoutWinner:
    then = decision.without(winner)
    changes = tuple(
        FieldChange(name, *values) for name, values in field_changes(decision.spec, then.spec).items()
    )
    return WithoutWinner(then.spec.name if then.spec else "float", rule_text(then.winner), changes)


def _explain_rule(outcome: Outcome, rule: Rule) -> RuleExplanation:
    deciding = [decision for decision in outcome.decisions if rule in decision.contributors]
    changed = [d.target for d in deciding if d.without(rule).spec != d.spec]
    beaten = [decision for decision in outcome.decisions if rule in decision.losers]
    return RuleExplanation(
        kind=KINDS[rule.tier],
        pattern=rule.pattern,
        stage=outcome.stage,
        place=rule.place,
        gives=given_text(rule),
        wins=tuple(decision.target for decision in deciding),
        changes=tuple(changed),
        loses=tuple(Loss(d.target, rule_text(d.winner)) for d in beaten if rule not in d.contributors),
    )
