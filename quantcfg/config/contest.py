"""Why one rule beat the others on an op: what each matched, and which step of the order decided."""

from __future__ import annotations

from dataclasses import dataclass

from quantcfg.config.matching import NameIndex
from quantcfg.config.parameters import filled
from quantcfg.config.rules import EXACT_NAME_TIER, TIERS, Decision, Rule, Target
from quantcfg.config.spec import DEFAULT, Origin, Scalar
from quantcfg.errors import Place

KINDS = {
    TIERS["global"]: "global",
    TIERS["template"]: "template",
    TIERS["module_type"]: "type",
    TIERS["module_name"]: "pattern",
    EXACT_NAME_TIER: "exact name",
    TIERS["attribute"]: "attribute",
}


@dataclass(frozen=True, slots=True)
class Contender:
    """A rule that matches an op. ``matched`` is the module or op that it names; ``why`` it won or lost."""

    rule: Rule
    matched: str
    why: str

    @property
    def kind(self) -> str:
        """The step of the order that the rule is on."""
        return KINDS[self.rule.tier]


@dataclass(frozen=True, slots=True)
class FieldOrigin:
    """One field of a resolved qconfig and where it was written."""

    field: str
    value: Scalar
    origin: str
    place: Place | None


def contest(decision: Decision, target: Target) -> list[Contender]:
    """Every rule that speaks of an op, the winner first."""
    if decision.winner is None:
        return []
    winner = decision.winner
    runner_up = decision.losers[0] if decision.losers else None
    why = _why(winner, runner_up, target) if runner_up else "no other rule speaks of it"
    found = [Contender(winner, matched_at(winner, target), why)]
    for loser in decision.losers:
        found.append(Contender(loser, matched_at(loser, target), _why_not(loser, winner, target)))
    return found


def matched_at(rule: Rule, target: Target) -> str:
    """The nearest module around an op, or the op itself, that a rule names; empty for the root."""
    if rule.kind == "module_type":
        found = [path for path, classes in target.modules() if rule.type_distance(classes) is not None]
    elif rule.kind in ("module_name", "attribute", "template"):
        index = NameIndex([(rule.pattern, True)])
        found = [path for path, _ in target.chain if index.matches(path)]
    else:
        found = []
    return found[-1] if found else ""


def _why(winner: Rule, loser: Rule, target: Target) -> str:
    if winner.tier != loser.tier:
        return f"{KINDS[winner.tier]} beats {KINDS[loser.tier]}"
    here, there = matched_at(winner, target), matched_at(loser, target)
    if here != there:
        return f"{here} is nearer than {there or 'the model'}"
    if winner.kind == "module_type" and _above(winner, here, target) != _above(loser, here, target):
        return f"{winner.pattern} is the nearer class"
    return "later in the file"


def _above(rule: Rule, path: str, target: Target) -> int | None:
    """How far above the class of the module at ``path`` the one that a rule names is."""
    return rule.type_distance(dict(target.modules())[path])


def _why_not(loser: Rule, winner: Rule, target: Target) -> str:
    if winner.tier != loser.tier:
        return f"{KINDS[loser.tier]} is beaten by {KINDS[winner.tier]}"
    here, there = matched_at(winner, target), matched_at(loser, target)
    if here != there:
        return f"{there or 'the model'} is farther than {here}"
    if winner.kind == "module_type" and _above(winner, here, target) != _above(loser, here, target):
        return f"{loser.pattern} is a class farther up"
    return "earlier in the file"


def field_origins(decision: Decision) -> list[FieldOrigin]:
    """Every field of the qconfig of an op; what a preset brought has the place where the preset is used."""
    if decision.spec is None:
        return []
    origins = dict(decision.spec.origins)
    used = decision.contributors[-1].place if decision.contributors else None
    return [
        FieldOrigin(name, value, *_origin(origins.get(name, DEFAULT), used))
        for name, value in filled(decision.spec).values().items()
    ]


def _origin(origin: Origin, used: Place | None) -> tuple[str, Place | None]:
    if isinstance(origin, Place):
        return "written", origin
    return (origin, None) if origin == DEFAULT else (origin, used)
