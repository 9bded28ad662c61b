"""What docs/config.md and docs/prepare.md say of rules, templates and fused chains, tried one by one.

It shares no code with the package: neither patterns nor presets, neither the order of rules nor the roles of
ops. It knows the ops of `random_models` alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tests.prepare.random_models import OPS, Block

QConfig = dict[str, Any]
"""The six parameters of ``get_default_qconfig``."""
Outcome = QConfig | None
LAYERS, MOVES = ("conv2d", "linear"), ("transpose",)


@dataclass
class Op:
    """One op that ran.

    ``around`` are the names of the modules around it and its own, with how deep each is: half a step deeper
    than its name in every call is what names one call.
    """

    kind: str
    name: str
    plain: str  # the name that it has in every call
    path: str  # of its module
    reads: list[int]
    makes: int
    around: dict[str, float]


@dataclass
class Walk:
    """The ops of one forward; who made each value and who reads it; how often each module ran."""

    ops: list[Op] = field(default_factory=list)
    maker: list[int | None] = field(default_factory=lambda: [None])
    readers: list[list[int]] = field(default_factory=lambda: [[]])
    calls: Counter[str] = field(default_factory=Counter)
    result: int = 0


@dataclass(frozen=True)
class Running:
    """The modules that a call runs in, by the ``first`` of their names, and the name by which it is held."""

    first: dict[str, str]
    calls: dict[str, int] = field(default_factory=dict)
    held: str = ""


def walk(model: nn.Module) -> Walk:
    """Go through the steps of a model; a module that is registered twice has the first of its names."""
    found = Walk()
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    first = {name: each[0] for each in names.values() for name in each}
    found.result = _run(found, names, model, 0, Running(first))
    return found


def _run(found: Walk, names: dict[int, list[str]], module: nn.Module, value: int, outer: Running) -> int:
    path = names[id(module)][0]
    call = found.calls[path]
    found.calls[path] += 1
    inside = [name for name in names[id(module)] if not outer.held or name.startswith(outer.held + ".")]
    running = Running(outer.first, outer.calls | {path: call}, (inside or [path])[0])
    here = f"{path}:{call}" if call else path
    if not isinstance(module, Block):
        return _emit(found, OPS[type(module)], [here, path, running.held], [value], running)
    values, counts = [value], Counter[str]()
    for kind, name, reads in module.steps:
        given = [values[index] for index in reads]
        if kind == "call":
            values.append(_run(found, names, getattr(module, name), given[0], running))
            continue
        own = f"{name}_{counts[name]}"
        counts[name] += 1
        names_of_it = [f"{owner}.{own}".lstrip(".") for owner in (here, path, running.held)]
        values.append(_emit(found, name, names_of_it, given, running))
    return values[-1]


def _emit(found: Walk, kind: str, names: list[str], reads: list[int], running: Running) -> int:
    (name, plain, held), path = names, list(running.calls)[-1]
    parts = running.held.split(".") if running.held else []
    modules = ["", *(".".join(parts[: count + 1]) for count in range(len(parts)))]
    around: dict[str, float] = {}
    for depth, module in enumerate(modules):
        known = running.first[module]
        around[known] = depth
        around.setdefault(module, depth + 0.5)
        if running.calls.get(known):
            around[f"{known}:{running.calls[known]}"] = depth + 0.5
    around.setdefault(plain, len(modules))
    around.setdefault(held, around[plain] + 0.5)
    around.setdefault(name, around[plain] + 0.5)
    found.ops.append(Op(kind, name, plain, path, reads, len(found.maker), around))
    for value in reads:
        found.readers[value].append(len(found.ops) - 1)
    found.maker.append(len(found.ops) - 1)
    found.readers.append([])
    return found.ops[-1].makes


# Qconfigs -------------------------------------------------------------------------------------------------


def qconfig(**changes: Any) -> QConfig:
    """The defaults with changes."""
    names = {"fake_quant": "fake_quant", "observer": "min_max", "qkwargs": {}}
    defaults = {f"{slot}_{key}": value for slot in ("activation", "weight") for key, value in names.items()}
    return defaults | changes


LSQ = {"use_grad_scaling": True, "averaging_constant": 1.0}
LATEST = {"averaging_constant": 1.0}
QINT16 = {"dtype": "qint16"}
PRESETS = {  # in calibration and in training
    "w8a8": (qconfig(activation_observer="mse"), qconfig(weight_qkwargs=LATEST)),
    "w8a16": (
        qconfig(activation_observer="mse", activation_qkwargs=QINT16),
        qconfig(activation_qkwargs=QINT16, weight_qkwargs=LATEST),
    ),
    "w4a8": (
        qconfig(activation_observer="mse", weight_observer="mse", weight_qkwargs={"dtype": "qint4"}),
        qconfig(weight_qkwargs={"dtype": "qint4", **LATEST}),
    ),
    "w8a32": (
        qconfig(activation_fake_quant=None),
        qconfig(activation_fake_quant=None, weight_qkwargs=LATEST),
    ),
    "w8a8_lsq": (
        qconfig(activation_observer="mse"),
        qconfig(
            activation_fake_quant="lsq",
            weight_fake_quant="lsq",
            activation_qkwargs=LSQ,
            weight_qkwargs=LSQ,
        ),
    ),
    "default_calib_8bit_weight_32bit_out_fake_quant_qconfig": (qconfig(activation_fake_quant=None),) * 2,
}
_OWN = {"percentile": {"percentile"}, "lsq": {"use_grad_scaling"}}
_SHARED = {"dtype", "averaging_constant"}


def changed(base: QConfig, fields: QConfig) -> QConfig:
    """A qconfig with other fields; parameters that the new kind does not have stay behind."""
    result = dict(base)
    for slot in ("activation", "weight"):
        kept = dict(base[f"{slot}_qkwargs"])
        kinds = [f"{slot}_fake_quant", f"{slot}_observer"]
        result |= {kind: fields[kind] for kind in kinds if kind in fields}
        if any(kind in fields for kind in kinds):
            known = _SHARED.union(*(_OWN.get(result[kind], set()) for kind in kinds))
            kept = {name: value for name, value in kept.items() if name in known}
        result[f"{slot}_qkwargs"] = kept | fields.get(f"{slot}_qkwargs", {})
    return result


@dataclass(frozen=True)
class Inherit:
    """What a rule changes of what would have won without it."""

    fields: QConfig = field(hash=False)


def read(value: Any, named: dict[str, Any], stage: str) -> Outcome | Inherit:
    """A qconfig as a config writes it."""
    if value is None:
        return None
    if isinstance(value, str):
        return read(named[value], named, stage) if value in named else PRESETS[value][stage == "qat"]
    if stage in value:
        return read(value[stage], named, stage)
    fields = {key: item for key, item in value.items() if key != "preset"}
    if value.get("preset") == "inherit":
        return Inherit(fields)
    base = read(value["preset"], named, stage) if "preset" in value else qconfig()
    assert isinstance(base, dict)
    return changed(base, fields)


def slot_of(outcome: Outcome, slot: str) -> dict[str, Any] | None:
    """What one slot is built with."""
    if outcome is None or outcome[f"{slot}_fake_quant"] is None:
        return None
    scheme = "per_channel_symmetric" if slot == "weight" else "per_tensor_symmetric"
    kinds = {"fake_quant": outcome[f"{slot}_fake_quant"], "observer": outcome[f"{slot}_observer"]}
    return {"dtype": "qint8", "qscheme": scheme} | kinds | outcome[f"{slot}_qkwargs"]


# Rules ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule; ``gives`` is what `read` makes of its value."""

    kind: str
    pattern: str
    gives: Outcome | Inherit
    subclasses: bool = False
    optional: bool = False

    @property
    def tier(self) -> int:
        exact = self.kind == "module_name" and not is_pattern(self.pattern)
        tiers = ("global", "module_type", "template", "module_name", "exact", "attribute")
        return tiers.index("exact" if exact else self.kind)

    def __str__(self) -> str:
        return f"{self.kind} '{self.pattern}'" if self.pattern else f"{self.kind} rule"


def is_pattern(text: str) -> bool:
    """Whether a name is one of several that it matches."""
    return text.startswith("re:") or any(char in text for char in "*?{")


def matches(pattern: str, name: str) -> bool:
    """A pattern or an exact name against a whole name."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    if not is_pattern(pattern):
        return pattern == name
    names = name.split(".") if name else []
    return any(_segments(one.split("."), names) for one in _expanded(pattern))


def _expanded(pattern: str) -> Iterator[str]:
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*))\}", pattern)
    if not found:
        yield pattern
        return
    first, last, words = found.groups()
    choices = map(str, range(int(first), int(last) + 1)) if first else words.split(",")
    for choice in choices:
        yield from _expanded(pattern[: found.start()] + choice + pattern[found.end() :])


def _segments(pattern: Sequence[str], names: Sequence[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_segments(pattern[1:], names[count:]) for count in range(len(names) + 1))
    here = re.escape(pattern[0]).replace(r"\*", ".*").replace(r"\?", ".")
    return bool(names) and bool(re.fullmatch(here, names[0])) and _segments(pattern[1:], names[1:])


def spellings(cls: type) -> set[str]:
    """What a class may be called."""
    exported = {f"torch.nn.{cls.__name__}"} if getattr(nn, cls.__name__, None) is cls else set()
    return {f"{cls.__module__}.{cls.__qualname__}", cls.__name__} | exported


def steps_up(rule: Rule, cls: type) -> int | None:
    """How far above a class the one is that a rule names."""
    for steps, above in enumerate(cls.__mro__):
        if rule.pattern in spellings(above):
            return steps if steps == 0 or rule.subclasses else None
    return None


Ranked = list[tuple[tuple[int, float], Rule]]
"""Rules with their kind and how near to the op they match, best first."""


def contest(rules: Sequence[Rule], op: Op, types: dict[str, type]) -> Ranked:
    """Every rule that speaks of an op, each once."""
    found = []
    for order, rule in enumerate(rules):
        for path, depth in op.around.items():
            above = steps_up(rule, types[path]) if rule.kind == "module_type" and path in types else None
            in_every_call = next(name for name, other in op.around.items() if other == int(depth))
            if path != in_every_call and matches(rule.pattern, in_every_call):
                continue  # no nearer to one call than to another
            named = rule.kind in ("module_name", "attribute", "template") and matches(rule.pattern, path)
            if rule.kind == "global" or named or above is not None:
                near = 0 if rule.kind == "global" else depth - op.around[op.plain]
                found.append(((rule.tier, near), -(above or 0), order, rule))
    found.sort(key=lambda item: item[:3], reverse=True)
    best: dict[Rule, tuple[int, float]] = {}
    for key, _, _, rule in found:
        best.setdefault(rule, key)
    return [(key, rule) for rule, key in best.items()]


def outcome_of(ranked: Ranked) -> Outcome:
    """What the rules give an op: the first one's, or its changes of what the others give."""
    if not ranked:
        return None
    gives = ranked[0][1].gives
    if not isinstance(gives, Inherit):
        return gives
    beneath = outcome_of(ranked[1:])
    return None if beneath is None else changed(beneath, gives.fields)


# Templates, chains and quantizers --------------------------------------------------------------------------


def refine(templates: Sequence[str], found: Walk, outcomes: list[Outcome], ranked: list[Ranked]) -> None:
    """Apply templates to what a type or the global rule decides; one that changes an op is the last."""
    done: set[int] = set()
    for template in templates:
        output = template == "high_precision_output"
        for index in _outputs(found) if output else _ways_to_softmax(found):
            outcome = outcomes[index]
            if index in done or outcome is None or ranked[index][0][0][0] > 1:
                continue
            done.add(index)
            if output:
                reads = {"input": slot_of(outcome, "activation")}
                outcomes[index] = changed(outcome, {"activation_fake_quant": None}) | reads
            elif outcome["activation_fake_quant"] is not None:
                outcomes[index] = changed(outcome, {"activation_qkwargs": QINT16})


def _outputs(found: Walk) -> list[int]:
    def only_leaves(op: Op) -> bool:
        readers = [found.ops[index] for index in found.readers[op.makes]]
        moved = all(reader.kind in MOVES and only_leaves(reader) for reader in readers)
        return moved and (bool(readers) or op.makes == found.result)

    return [index for index, op in enumerate(found.ops) if op.kind in LAYERS and only_leaves(op)]


def _ways_to_softmax(found: Walk) -> Iterator[int]:
    for op in found.ops:
        index = found.maker[op.reads[0]] if op.kind == "softmax" else None
        while index is not None:
            yield index
            before = found.ops[index]
            is_end = before.kind in LAYERS or len(before.reads) > 1
            index = None if is_end else found.maker[before.reads[0]]


@dataclass
class Chain:
    """Ops that are fused, in order, and the one whose name the quantizer has."""

    ops: list[Op]
    outcome: Outcome = None

    @property
    def carrier(self) -> Op:
        return self.ops[0] if [op.kind for op in self.ops[1:]] == ["batch_norm"] else self.ops[-1]


def chains(found: Walk, outcomes: Sequence[Outcome]) -> list[Chain]:
    """Layer [+ batch norm] [+ add] [+ ReLU], then batch norm [+ ReLU], then add [+ ReLU]."""
    free = {op.name for op, outcome in zip(found.ops, outcomes, strict=True) if outcome is not None}
    made = []
    for starts in (LAYERS, ("batch_norm",), ("add",)):
        steps = ("batch_norm", "add", "relu") if starts is LAYERS else ("relu",)
        for op in found.ops:
            chain = _grown(found, op, steps, free) if op.kind in starts and op.name in free else [op]
            if len(chain) > 1:
                made.append(Chain(chain))
                free -= {member.name for member in chain}
    return made


def _grown(found: Walk, start: Op, steps: Sequence[str], free: set[str]) -> list[Op]:
    chain = [start]
    for step in steps:
        readers = found.readers[chain[-1].makes]
        if len(readers) != 1 or chain[-1].makes == found.result:
            break
        follower = found.ops[readers[0]]
        # A linear layer has its channels on another axis than those that a batch norm normalizes.
        foldable = start.kind == "conv2d" and _together(found, start, follower)
        if follower.kind == step and follower.name in free and (foldable or step != "batch_norm"):
            chain.append(follower)
    return chain


def _together(found: Walk, layer: Op, norm: Op) -> bool:
    """Whether each call of a layer is read by one of a batch norm alone, and each of that reads one of it."""
    layers, norms = ([op for op in found.ops if op.path == one.path] for one in (layer, norm))
    behind = [found.readers[op.makes] for op in layers if op.makes != found.result]
    return [[found.ops.index(op)] for op in norms] == behind


class Resolved:
    """Every quantizer that a model should get, and the rules that the plan should name for each op."""

    def __init__(
        self, found: Walk, outcomes: list[Outcome], ranked: list[Ranked], everywhere: Outcome
    ) -> None:
        self.found, self.outcomes = found, outcomes
        self.default = slot_of(everywhere, "activation")
        self.named = {op.name: one for op, one in zip(found.ops, ranked, strict=True)}
        self.quantizers: dict[str, dict[str, Any]] = {}
        self.inputs: dict[
            str, list[dict[str, Any]]
        ] = {}  # by the op that reads a value that arrives in float
        self._given: set[int] = set()  # values with a quantizer where they are read
        self._on_grid: set[int] = set()
        self._passing: set[int] = set()
        chain_of = {op.name: chain for chain in self._with_grid(outcomes) for op in chain.ops}
        for index, op in enumerate(found.ops):
            self._visit(index, op, chain_of.get(op.name))

    def _with_grid(self, outcomes: list[Outcome]) -> Iterator[Chain]:
        """The chains in which something is quantized: an add in 32 bits with its ReLU has nothing."""
        for chain in chains(self.found, outcomes):
            ranked, chain.outcome = self._decided(chain)
            has_grid = chain.ops[0].kind in LAYERS or slot_of(chain.outcome, "activation") is not None
            for op in [chain.carrier] if has_grid else chain.ops:
                self.named[op.name] = ranked
                if not has_grid:
                    self.outcomes[self.found.ops.index(op)] = chain.outcome
            if has_grid:
                yield chain

    def _visit(self, index: int, op: Op, chain: Chain | None) -> None:
        if chain is None and op.kind in (*MOVES, "relu"):
            self._passing.add(index)
            return
        outcome = self.outcomes[index]
        if outcome is None:
            return
        if chain is None and op.kind not in LAYERS and slot_of(outcome, "activation") is None:
            return
        weight = slot_of(outcome, "weight")
        if op.kind in LAYERS and weight is not None:
            self.quantizers.setdefault(f"{op.path}.weight", weight)
        inside = {member.makes for member in chain.ops} if chain else set()
        for value in op.reads:
            if value not in inside:
                own = outcome.get("input") or slot_of(outcome, "activation")
                self._bring_to_grid(op, value, own or self.default)
        if chain is None:
            self._quantize(op, outcome, op.makes)
        elif op is chain.carrier:
            self._quantize(op, chain.outcome, chain.ops[-1].makes)

    def _decided(self, chain: Chain) -> tuple[Ranked, Outcome]:
        """By the strongest kind, then the nearest rule, then the last op, the carrier very last."""
        entries = []
        for op in (chain.carrier, *reversed(chain.ops)):
            entries += [(key, rule, op) for key, rule in self.named[op.name]]
        entries.sort(key=lambda entry: entry[0], reverse=True)
        first: dict[Rule, tuple[int, float]] = {}
        for key, rule, _ in entries:
            first.setdefault(rule, key)
        outcome = self.outcomes[self.found.ops.index(entries[0][2])]
        return [(key, rule) for rule, key in first.items()], outcome

    def _quantize(self, op: Op, outcome: Outcome, value: int) -> None:
        spec = slot_of(outcome, "activation")
        if spec is not None:
            self.quantizers[f"{op.name}.output"] = spec
            self._on_grid.add(value)

    def _bring_to_grid(self, reader: Op, value: int, spec: dict[str, Any] | None) -> None:
        """Before what only moves a value, but behind a ReLU, after which the range is half as wide."""
        while spec is not None and (maker := self.found.maker[value]) in self._passing:
            assert maker is not None
            before = self.found.ops[maker]
            if before.kind == "relu" and not self._is_on_grid(before.reads[0]):
                break
            reader, value = before, before.reads[0]
        if spec is not None and value not in self._on_grid | self._given:
            self._given.add(value)
            self.inputs.setdefault("input" if value == 0 else reader.name, []).append(spec)

    def _is_on_grid(self, value: int) -> bool:
        while (maker := self.found.maker[value]) in self._passing:
            assert maker is not None
            value = self.found.ops[maker].reads[0]
        return value in self._on_grid | self._given


def resolve(model: nn.Module, rules: Sequence[Rule], templates: Sequence[str] = ()) -> Resolved:
    """All of it for the rules of one stage, attributes among them."""
    found = walk(model)
    types = {name: type(module) for name, module in model.named_modules()}
    ranked = [contest(rules, op, types) for op in found.ops]
    outcomes = [outcome_of(one) for one in ranked]
    refine(templates, found, outcomes, ranked)
    everywhere = next((rule.gives for rule in rules if rule.kind == "global"), None)
    assert not isinstance(everywhere, Inherit)
    return Resolved(found, outcomes, ranked, everywhere)
