"""Which observers compete where: the fields of a config that a comparison may fill in, op by op."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from quantcfg.config.chosen import can_be_named, with_chosen
from quantcfg.config.load import Config
from quantcfg.config.overlay import overlay
from quantcfg.config.parameters import FAKE_QUANT_PARAMETERS
from quantcfg.config.rules import Decision
from quantcfg.config.spec import SLOTS, FakeQuantSpec, Field, QConfigSpec, make_spec
from quantcfg.numeric.observers import OBSERVERS
from quantcfg.numeric.observers.base import Observer
from quantcfg.preparation.assign import Assignments
from quantcfg.preparation.hardware import Assigner, target_of
from quantcfg.preparation.record import Recording, Site
from quantcfg.preparation.rules import default_activation
from quantcfg.preparation.state import fake_quants, prepared
from quantcfg.preparation.targets import targets_of, with_attributes
from quantcfg.preparation.templates import with_templates

_ORIGIN = "calib.compare"
Choices = Mapping[tuple[str, str], str]
"""The observer of each (op, slot)."""


@dataclass(frozen=True, slots=True)
class Contest:
    """One field of one op, ``activation_observer`` or ``weight_observer``, and who competes for it.

    ``quantizers`` are all that the field decides; ``configured`` is the observer of the config.
    """

    op: str
    slot: str
    configured: str
    quantizers: tuple[str, ...]
    candidates: Mapping[str, FakeQuantSpec]

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the others."""
        return self.op, self.slot


@dataclass(frozen=True, slots=True)
class Contests:
    """All contests of a model.

    ``specs`` are the qconfigs of the ops as the rules decide them, ``deciders`` the ops whose qconfig is the
    last word on the output of a chain, by the ops of that chain.
    """

    contests: tuple[Contest, ...]
    specs: Mapping[str, QConfigSpec]
    deciders: Mapping[str, str]

    def config_with(self, config: Config, choices: Choices) -> Config:
        """``config`` as if it had named the chosen observers itself."""
        changed: dict[str, QConfigSpec] = {}
        for contest in self.contests:
            spec = changed.get(contest.op, self.specs[contest.op])
            slot = contest.candidates[choices[contest.key]]
            is_weight = contest.slot == "weight"
            changed[contest.op] = replace(spec, weight=slot) if is_weight else replace(spec, activation=slot)
        return with_chosen(config, self._in_order(changed))

    def _in_order(self, changed: Mapping[str, QConfigSpec]) -> dict[str, QConfigSpec]:
        """Deciders last: in a chain the last of several rules of equal rank has the last word."""
        deciders = {self.deciders[op] for op in changed if op in self.deciders}
        first = {op: spec for op, spec in changed.items() if op not in deciders}
        return first | {op: changed.get(op, self.specs[op]) for op in sorted(deciders)}


def find_contests(config: Config, float_model: nn.Module, model: nn.Module) -> Contests:
    """The contests that ``calib.compare`` asks for on a prepared ``model``.

    A fixed scale is kept, and so is what the config cannot say: the qconfig attribute of a module.
    """
    recording = prepared(model).recording
    rules = with_attributes(config.rules("calib"), float_model)
    decisions = rules.resolve(targets_of(float_model, recording))
    decisions = with_templates(config.templates("calib"), recording, decisions)
    assigner = Assigner(recording, default_activation(rules), rules, target_of(config))
    fitting, _ = assigner.fit(decisions)
    marked = [replace(decision, spec=_marked(decision.spec)) for decision in fitting]
    assignments = assigner.assign(marked)
    specs = {d.target: d.spec for d in marked if d.spec is not None and _can_change(d)}
    owners = {id(getattr(spec, slot)): (op, slot) for op, spec in specs.items() for slot in SLOTS}
    held: dict[tuple[str, str], list[str]] = {}
    for name, slot_spec in _quantizers(recording, assignments, set(fake_quants(model))):
        if (owner := owners.get(id(slot_spec))) is not None:
            held.setdefault(owner, []).append(name)
    contests = (
        _contest(owner, specs[owner[0]], tuple(names), config, model) for owner, names in held.items()
    )
    return Contests(tuple(c for c in contests if len(c.candidates) > 1), specs, _deciders(assignments, specs))


def _marked(spec: QConfigSpec | None) -> QConfigSpec | None:
    """The same qconfig in objects of its own, so that its slots can be told from equal ones of other ops."""
    if spec is None:
        return None
    activation, weight = (slot and replace(slot) for slot in (spec.activation, spec.weight))
    return replace(spec, activation=activation, weight=weight)


def _can_change(decision: Decision) -> bool:
    assert decision.spec is not None
    from_code = decision.winner is not None and decision.winner.kind == "attribute"
    return not from_code and decision.spec.input is None and can_be_named(decision.target)


def _contest(
    owner: tuple[str, str], spec: QConfigSpec, names: tuple[str, ...], config: Config, model: nn.Module
) -> Contest:
    op, slot = owner
    configured: FakeQuantSpec = getattr(spec, slot)
    candidates: dict[str, FakeQuantSpec] = {}
    modules = fake_quants(model)
    for kind in config.calib.compare or ():
        candidate = _candidate(spec, slot, kind)
        with suppress(ValueError):  # not for this dtype: kl has no range for wide ones
            for name in names:
                make_observer(candidate, modules[name].observer)
            candidates[kind] = candidate
    is_fixed = configured.observer == "fixed_scale"
    return Contest(op, slot, configured.observer, names, {} if is_fixed else candidates)


def _candidate(spec: QConfigSpec, slot: str, kind: str) -> FakeQuantSpec:
    """The slot as a config gives it that changes only the observer."""
    fields = {name: Field(value, _ORIGIN) for name, value in spec.values().items()}
    changed = make_spec(overlay(fields, {f"{slot}_observer": Field(kind, _ORIGIN)}))
    found: FakeQuantSpec | None = getattr(changed, slot)
    assert found is not None
    return found


def make_observer(spec: FakeQuantSpec, like: Observer) -> Observer:
    """The observer of ``spec`` for the tensor that ``like`` watches.

    Raises:
        ValueError: the kind has no range for this dtype.
    """
    own = FAKE_QUANT_PARAMETERS[spec.fake_quant].model_fields
    kwargs: dict[str, Any] = {name: value for name, value in spec.kwargs.items() if name not in own}
    kwargs |= {"qscheme": like.qscheme, "ch_axis": like.ch_axis, "num_channels": like.num_channels}
    made = OBSERVERS[spec.observer](**kwargs).to(like.min_val.device)
    made.name, made.nonfinite = like.name, like.nonfinite
    return made


def _quantizers(
    recording: Recording, assignments: Assignments, known: set[str]
) -> Iterator[tuple[str, FakeQuantSpec]]:
    """Every quantizer by the name that it has in the model, with the slot that decides it."""
    numbers: dict[int, int] = {}
    named: set[int] = set()
    for row in assignments.rows:
        for value in dict.fromkeys(edge.value for edge in row.edges):
            if value not in named:
                named.add(value)
                yield _input_name(recording, assignments, value, numbers), assignments.inputs[value]
        if row.weight is not None:
            for name in _weight_names(row.site, known):
                yield name, row.weight
        if row.output is not None:
            yield f"{row.site.name}.output", row.output


def _weight_names(site: Site, known: set[str]) -> list[str]:
    """The quantizers of the weights of an op that ran; the calls of one module share them."""
    base = site.name.replace(f":{site.call}", "")
    found = [name for name in known if name == f"{base}.weight" or name.startswith(f"{base}.weight_")]
    known.difference_update(found)
    return sorted(found)


def _input_name(recording: Recording, assignments: Assignments, value: int, numbers: dict[int, int]) -> str:
    owner: Site = recording.sites[assignments.input_owner[value]]
    number = numbers.get(owner.index, 0)
    numbers[owner.index] = number + 1
    source = recording.values[value]
    return f"input.{source.name}" if source.kind == "input" else f"{owner.name}.input_{number}"


def _deciders(assignments: Assignments, specs: Mapping[str, QConfigSpec]) -> dict[str, str]:
    found: dict[str, str] = {}
    for chain in assignments.chains:
        decider = assignments.rows[chain.carrier].decision.target
        if decider in specs:
            found |= {assignments.rows[index].site.name: decider for index in chain.sites}
    return found


def quantizers_of(contests: Sequence[Contest]) -> dict[str, Contest]:
    """The contest that decides each quantizer, by the quantizer's name."""
    return {name: contest for contest in contests for name in contest.quantizers}
