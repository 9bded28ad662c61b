"""The ops of a model against what a target takes: refused, left in float, or adjusted, before any compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantcfg.config.collect import Findings
from quantcfg.config.hardware import PROFILES, Profile, adjusted, fits, grid_of, origin_of, refuse
from quantcfg.config.load import Config
from quantcfg.config.rules import Decision, RuleSet
from quantcfg.config.spec import FakeQuantSpec, QConfigSpec
from quantcfg.config.suggest import listing
from quantcfg.errors import Place
from quantcfg.preparation.assign import Assignment, Assignments, assign
from quantcfg.preparation.record import Recording

_SHOWN = 4


@dataclass(frozen=True, slots=True)
class ExportTarget:
    """Where the model is to run, and what happens to what cannot: ``error``, ``float`` or ``adjust``."""

    profile: Profile
    unsupported: str


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What was changed for the target at one op. ``slot`` is ``activation`` or ``weight``."""

    op: str
    slot: str
    before: str
    after: str
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class _Misfit:
    """A quantizer of a row that the target does not take."""

    row: Assignment
    slot: str
    spec: FakeQuantSpec


def target_of(config: Config) -> ExportTarget | None:
    """Where the model is to run; None where every grid is welcome."""
    section = config.export
    if section.target == "generic":
        return None
    return ExportTarget(PROFILES[section.target], section.unsupported)


@dataclass(frozen=True, slots=True)
class Assigner:
    """Gives the ops of a recording their roles, on grids that a target takes.

    ``default`` is the activation that inputs get where no op says otherwise.
    """

    recording: Recording
    default: FakeQuantSpec | None
    rules: RuleSet
    target: ExportTarget | None

    def fit(self, decisions: Sequence[Decision]) -> tuple[list[Decision], tuple[Adjustment, ...]]:
        """Decisions whose quantizers the target takes, and what was changed for that.

        Raises:
            ConfigError: with ``error``, what it does not take; with the others, what cannot be changed.
        """
        target = self.target
        if target is None:
            return list(decisions), ()
        assignments = self._assign(decisions, self.default)
        misfits = _misfits(assignments, target)
        self._refuse_misfits(misfits, target)
        changes = tuple(change for misfit in misfits for change in _change(misfit, target))
        touched = {misfit.row.site.index for misfit in misfits}
        pairs = zip(assignments.rows, decisions, strict=True)
        fitting = [_fitting(d, row.site.op, target, row.site.index in touched) for row, d in pairs]
        if target.unsupported != "float" or fitting == list(decisions):
            return fitting, changes
        # Without the end of its chain an op is quantized itself, on the same grid if one rule holds for both.
        fitting, more = self.fit(fitting)
        return fitting, (*changes, *more)

    def assign(self, fitting: Sequence[Decision]) -> Assignments:
        """The roles that decisions give which fit."""
        default = self.default
        if default is not None and self.target is not None and self.target.unsupported == "adjust":
            default = adjusted(self.target.profile, default, "activation") or default
        return self._assign(fitting, default)

    def _assign(self, decisions: Sequence[Decision], default: FakeQuantSpec | None) -> Assignments:
        with_add = self.target is None or self.target.profile.adds_to_accumulator
        return assign(self.recording, decisions, default, with_add=with_add)

    def _refuse_misfits(self, misfits: Sequence[_Misfit], target: ExportTarget) -> None:
        findings = Findings(dict(self.rules.sources))
        if target.unsupported == "error":
            _refuse(misfits, target, findings)
        elif target.unsupported == "adjust":
            _refuse([m for m in misfits if not _change(m, target)], target, findings)
        findings.raise_if_errors()


def _misfits(assignments: Assignments, target: ExportTarget) -> list[_Misfit]:
    found: list[_Misfit] = []
    for row in assignments.rows:
        activations: list[FakeQuantSpec | None] = [
            row.output,
            *(assignments.inputs[edge.value] for edge in row.edges),
        ]
        for slot, specs in (("activation", activations), ("weight", [row.weight])):
            unfit = (s for s in specs if not fits(target.profile, s, slot, row.site.op))
            found += [_Misfit(row, slot, spec) for spec in list(unfit)[:1] if spec is not None]
    return found


def _change(misfit: _Misfit, target: ExportTarget) -> list[Adjustment]:
    """What becomes of it; nothing where the target leaves no way."""
    op, slot = misfit.row.site, misfit.slot
    after = "float"
    if target.unsupported == "adjust":
        spec = adjusted(target.profile, misfit.spec, slot, op.op)
        if spec is None:
            return []
        after = " ".join(grid_of(spec, slot))
    winner = misfit.row.decision.winner
    before = " ".join(grid_of(misfit.spec, slot))
    return [Adjustment(op.name, slot, before, after, winner.place if winner else None)]


def _fitting(decision: Decision, op: str, target: ExportTarget, touched: bool) -> Decision:
    spec = decision.spec
    if spec is None or (target.unsupported == "float" and not touched):
        return decision
    if target.unsupported == "float":
        return replace(decision, spec=None, left_by=f"export.target {target.profile.name}")
    return replace(decision, spec=_adjusted(spec, op, target))


def _adjusted(spec: QConfigSpec, op: str, target: ExportTarget) -> QConfigSpec:
    """Slots that no op uses may stay as they are; one that an op uses was refused if it cannot change."""

    def change(slot: FakeQuantSpec | None, name: str) -> FakeQuantSpec | None:
        return None if slot is None else adjusted(target.profile, slot, name, op) or slot

    return replace(
        spec,
        activation=change(spec.activation, "activation"),
        weight=change(spec.weight, "weight"),
        input=change(spec.input, "activation"),
    )


def _refuse(misfits: Sequence[_Misfit], target: ExportTarget, findings: Findings) -> None:
    """One finding for each place and grid, with the ops that it is about."""
    groups: dict[tuple[Place | None, str, FakeQuantSpec], list[_Misfit]] = {}
    for misfit in misfits:
        groups.setdefault((_place(misfit), misfit.slot, misfit.spec), []).append(misfit)
    for (place, slot, spec), members in groups.items():
        names = listing([f"`{misfit.row.site.name}`" for misfit in members], _SHOWN)
        refuse(findings, target.profile, slot, spec, place, op=members[0].row.site.op, names=names)


def _place(misfit: _Misfit) -> Place | None:
    """Where the grid was written, if the op's own rule asks for it, else the rule."""
    decision = misfit.row.decision
    own = decision.spec is not None and decision.spec.slots[misfit.slot] == misfit.spec
    origin = origin_of(decision.spec, misfit.slot) if own else None
    return origin or (decision.winner.place if decision.winner else None)
