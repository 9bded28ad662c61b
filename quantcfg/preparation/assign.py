"""Assign: rules x recorded sites -> what happens at each site, and why.

A pure function of the recording and the decisions of the rules. It walks the sites in the order they ran and
keeps for every value the grid it is on, so that nothing is quantized twice and nothing arrives unquantized by
accident. What has to stay in float, whatever the rules say, is found before: what a value is made of
(`Recording.made_of`) and what it is read for (`Recording.read_only_by`) tell it; see masks, positions, cells,
losses, overflow, ratios, roots and steep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import prod

from quantcfg.config.rules import Decision, Rule, strongest
from quantcfg.config.spec import FakeQuantSpec
from quantcfg.numeric.dtypes import as_dtype
from quantcfg.preparation.cells import FINE_BITS, REASON as POINT
from quantcfg.preparation.fuse import Chain, find_chains, vanishes
from quantcfg.preparation.losses import FOR_NUMBER, NUMBER, read_for_numbers
from quantcfg.preparation.masks import before_replacement
from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.overflow import REASON as OVERGROWN, overgrown_in
from quantcfg.preparation.positions import positions_in
from quantcfg.preparation.ratios import kept_for_ratios
from quantcfg.preparation.record import Operand, Recording, Site, Slot, Value
from quantcfg.preparation.roots import kept_for_roots
from quantcfg.preparation.steep import INVERSES, filters, kept_for_steepness, steepness

LEFT_BY_RULES = ("left in float by", "no rule covers it", "no activation fake quant")
"""How the reason of an op begins that is in float because of the rules, not because of what it is."""


class Role(Enum):
    """What becomes of an op."""

    QUANTIZED = "quantized"
    FUSED = "fused"
    PASSED = "passed through"
    FLOAT = "float"


@dataclass(frozen=True, slots=True)
class Edge:
    """A quantizer on an argument whose value arrives in float. Equal ``value`` means one shared quantizer."""

    slot: Slot
    value: int


@dataclass(slots=True)
class Assignment:
    """The outcome for one site. ``output`` and ``weight`` are None where there is no quantizer."""

    site: Site
    decision: Decision
    role: Role = Role.FLOAT
    reason: str = ""
    output: FakeQuantSpec | None = None
    weight: FakeQuantSpec | None = None
    edges: list[Edge] = field(default_factory=list)
    chain_end: int | None = None
    constant: bool = False  # depends on no activation: a parameter being reshaped, a mask being built


@dataclass(slots=True)
class Assignments:
    """All sites, the quantizers of float values by value, and the chains."""

    rows: list[Assignment]
    inputs: dict[int, FakeQuantSpec]
    input_owner: dict[int, int]  # value -> the site whose edge names its quantizer
    chains: list[Chain]


def assign(
    recording: Recording,
    decisions: Sequence[Decision],
    default: FakeQuantSpec | None,
    *,
    with_add: bool = True,
) -> Assignments:
    """Decide every site.

    Args:
        recording: what ran.
        decisions: one per site, in its order.
        default: the activation of the global rule, for inputs of ops whose own output stays in 32 bits.
        with_add: whether a convolution or linear layer may be one with an add behind it.
    """
    return _Assigner(recording, decisions, default, with_add=with_add).run()


class _Assigner:
    def __init__(
        self,
        recording: Recording,
        decisions: Sequence[Decision],
        default: FakeQuantSpec | None,
        *,
        with_add: bool,
    ) -> None:
        self.recording = recording
        self.default = default
        self.with_add = with_add
        self.rows = [
            Assignment(site, decision) for site, decision in zip(recording.sites, decisions, strict=True)
        ]
        self.statistic: set[int] = set()
        self.positions = {
            value: reason
            for value, reason in positions_in(recording).items()
            if reason != POINT or not self._has_fine_grid(value)
        }
        self.for_numbers = read_for_numbers(recording)
        self.overgrown = overgrown_in(recording)
        self.outside: set[int] = set()  # values outside the stubs' region
        self.on_grid: set[int] = set()  # values that a quantizer made
        self.edges: dict[int, FakeQuantSpec] = {}
        self.owner: dict[int, int] = {}
        self.transparent: set[int] = set()
        self.unrounded = kept_for_ratios(recording) | before_replacement(recording)
        self.kept = kept_for_roots(recording) | self.unrounded
        self.steep = kept_for_steepness(recording)
        self.rewritten = {recording.unmoved(site.data[0].value) for site in recording.sites if _writes(site)}
        self._enter_stubs()

    def _has_fine_grid(self, value: int) -> bool:
        """Whether what makes a value has 16 bits, on which a point of an image stays where it is."""
        site = self.recording.producer(value)
        spec = None if site is None else self.rows[site.index].decision.spec
        grid = None if spec is None else spec.activation
        return grid is not None and as_dtype(grid.dtype).num_bits >= FINE_BITS

    def _enter_stubs(self) -> None:
        if any(site.op == "quant_stub" for site in self.recording.sites):
            self.outside.update(self.recording.inputs)

    def run(self) -> Assignments:
        blockers = [self._float_reason(row) for row in self.rows]
        eligible = [
            not reason and self._fusable(row) for row, reason in zip(self.rows, blockers, strict=True)
        ]
        found = find_chains(self.recording, eligible, with_add=self.with_add)
        decisions = {index: self._decision(chain) for chain in found for index in chain.sites}
        chains = [chain for chain in found if self._has_grid(chain.sites, decisions[chain.end])]
        inside = {index: chain for chain in chains for index in chain.sites}
        for row, reason in zip(self.rows, blockers, strict=True):
            decision = decisions.get(row.site.index, row.decision)
            if reason:
                row.reason = reason
            elif row.site.index in inside:
                self._in_chain(row, inside[row.site.index], decision)
            else:
                self._alone(row, decision)
        return Assignments(self.rows, self.edges, self.owner, chains)

    def _float_reason(self, row: Assignment) -> str:
        site = row.site
        live = self.recording.live(site)
        outside = self._region(site, live)
        if outside:
            return outside
        made = [self.recording.values[index] for index in site.outputs]
        if site.kind is OpKind.CREATE or not any(value.live for value in made):
            row.constant = True
            return self._constant_reason(site, made)
        if site.index in self.kept:
            return self.kept[site.index]
        if self._is_statistic(site, live):
            self.statistic.update(site.outputs)
            return "statistic of a norm: squares and roots need more than the grid's range"
        if site.kind in (OpKind.MOVE, OpKind.CLIP):
            return self._mask_reason(site)
        if site.kind is OpKind.FLOAT:
            return site.spec.reason or f"'{site.op}' has no quantized form"
        if not any(value.shape for value in made):
            return NUMBER
        if self.for_numbers.issuperset(site.outputs):
            return FOR_NUMBER
        if self.positions.keys() >= set(site.outputs):
            return self.positions[site.outputs[0]]
        return self._mask_reason(site) or self._steep_reason(site) or self._rule_reason(row.decision)

    def _constant_reason(self, site: Site, made: Sequence[Value]) -> str:
        if site.kind is not OpKind.CREATE and all(0 in value.shape for value in made):
            return "empty in the example: nothing was there to be observed"
        if all(value.fixed for value in made):
            return "computed from parameters only"
        return "made from integers, booleans or constants"

    def _region(self, site: Site, live: set[int]) -> str:
        """Outside the stubs' region everything stays in float."""
        if site.op == "quant_stub":
            return ""
        if site.op == "dequant_stub":
            self.outside.update(site.outputs)
            return "end of the quantized region"
        if live and live <= self.outside:
            self.outside.update(site.outputs)
            return "outside the region between QuantStub and DeQuantStub"
        return ""

    def _is_statistic(self, site: Site, live: set[int]) -> bool:
        if site.kind is OpKind.STATISTIC:
            return True
        if site.kind in (OpKind.GEMM, OpKind.FLOAT):
            return False
        return bool(live) and live <= self.statistic

    def _mask_reason(self, site: Site) -> str:
        masked = {i for i in site.outputs if self.recording.values[i].mask and i not in self.positions}
        if masked and masked <= self.overgrown:
            return OVERGROWN
        return "carries an attention mask: on a grid, -inf would become an ordinary number" if masked else ""

    def _steep_reason(self, site: Site) -> str:
        """A layer before what is steep is on grids, and gives 32 bits; all else there is in float."""
        on_grids = _is_layer(site) and not filters(self.recording, site)
        return "" if on_grids else self.steep.get(site.index, "")

    def _rule_reason(self, decision: Decision) -> str:
        if decision.spec is not None:
            return ""
        if not decision.winner:
            return "no rule covers it"
        return f"left in float by {decision.left_by or rule_text(decision.winner)}"

    def _fusable(self, row: Assignment) -> bool:
        """An op is in a chain where a rule gives it a qconfig; alone, a CLIP op needs none."""
        return row.site.kind not in (OpKind.MOVE, OpKind.JOIN) and not self._rule_reason(row.decision)

    def _has_grid(self, sites: Iterable[int], decision: Decision) -> bool:
        """Whether ops with one output have anything to quantize: that, or the operands of a product."""
        spec = decision.spec
        assert spec is not None
        return bool(spec.activation or spec.input) or any(
            row.site.kind is OpKind.GEMM or self._weight(row) is not None
            for row in (self.rows[index] for index in sites)
        )

    def _in_chain(self, row: Assignment, chain: Chain, decision: Decision) -> None:
        site = row.site
        row.chain_end = chain.carrier
        row.weight = self._weight(row)
        if not vanishes(site):
            self._inputs(row, [o for o in site.data if not self._from_chain(o, chain)])
        if site.index != chain.carrier:
            row.role = Role.FUSED
            row.reason = f"fused into {self.recording.sites[chain.carrier].name}"
            return
        self._quantize_output(row, decision, chain.end)
        self.on_grid.update(self.recording.sites[chain.end].outputs if row.output is not None else ())

    def _from_chain(self, operand: Operand, chain: Chain) -> bool:
        producer = self.recording.producer(operand.value)
        return producer is not None and producer.index in chain.sites

    def _decision(self, chain: Chain) -> Decision:
        """The decision for a chain's output. Between equals it is what comes last, the carrier very last."""
        rows = [self.rows[index] for index in (chain.carrier, *reversed(chain.sites))]
        return strongest([row.decision for row in rows if not vanishes(row.site)])

    def _alone(self, row: Assignment, decision: Decision) -> None:
        site, row.decision = row.site, decision
        if site.kind in (OpKind.MOVE, OpKind.CLIP) or self._joins_one_grid(site):
            row.role = Role.PASSED
            self.transparent.add(site.index)
            grid = bool(site.data) and self._grid(site.data[0].value)
            row.reason = "keeps the grid of its input" if grid else "its input is in float"
            return
        if not self._has_grid([site.index], decision):
            assert decision.spec is not None
            row.reason = f"no activation fake quant in {decision.spec.name}"
            return
        row.weight = self._weight(row)
        self._inputs(row, site.data)
        self._quantize_output(row, decision, site.index)
        row.reason = row.reason or site.spec.reason

    def _joins_one_grid(self, site: Site) -> bool:
        if site.kind is not OpKind.JOIN or not site.data:
            return False
        roots = {self._root(operand.value) for operand in site.data}
        return len(roots) == 1 and roots <= self.on_grid

    def _quantize_output(self, row: Assignment, decision: Decision, end: int) -> None:
        spec = decision.spec
        assert spec is not None
        row.decision = decision
        steep = self.steep.get(end)
        row.output, row.role = None if steep else spec.activation, Role.QUANTIZED
        if row.output is not None:
            kept = row.site.outputs[: row.site.spec.outputs or None]
            self.on_grid.update(kept)
        else:
            row.reason = f"32-bit output: {steep or 'no activation fake quant'}"

    def _weight(self, row: Assignment) -> FakeQuantSpec | None:
        spec = row.decision.spec
        return spec.weight if spec is not None and row.site.weights else None

    def _inputs(self, row: Assignment, operands: Sequence[Operand]) -> None:
        """See to it that what the op reads is on a grid; put a quantizer on what arrives in float."""
        spec = row.decision.spec
        assert spec is not None
        wanted = spec.input or spec.activation or self.default
        for operand in operands:
            if wanted is not None and not self._may_stay_float(row.site, operand):
                self._ensure_on_grid(row.site, operand, wanted)

    def _may_stay_float(self, site: Site, operand: Operand) -> bool:
        value = self.recording.values[operand.value]
        wide = operand.value in self.statistic or operand.value in self.positions
        narrowed = site.kind is OpKind.GEMM and not self._scales(site, operand)
        rough = (wide and not narrowed) or value.producer in self.unrounded
        is_marked = site.op == "quant_stub"  # which quantizes what it reads itself
        exempt = value.mask or rough or is_marked or bool(steepness(site, operand))
        nothing = 0 in value.shape and not value.live  # a cache that is filled later, and not from here
        return exempt or nothing or self._is_number(value)

    def _is_number(self, value: Value) -> bool:
        """Whether a value is one number, or a parameter of one that is expanded."""
        source = self.recording.values[self.recording.unmoved(value.index)]
        return prod(value.shape) == 1 or (source.fixed and prod(source.shape) == 1)

    def _scales(self, site: Site, operand: Operand) -> bool:
        """Whether a product of activations takes an inverse to divide by: it spans orders of magnitude."""
        maker = self.recording.producer(self.recording.unmoved(operand.value))
        return not site.weights and maker is not None and maker.op in INVERSES

    def _ensure_on_grid(self, site: Site, operand: Operand, wanted: FakeQuantSpec) -> None:
        consumer, slot, value = site, operand.slot, operand.value
        while True:
            producer = self.recording.producer(value)
            if producer is None or producer.index not in self.transparent or not producer.data:
                break
            if value in self.edges:
                break  # its other readers have it from a quantizer already
            if producer.kind is OpKind.CLIP and not self._grid(producer.data[0].value):
                break  # after a ReLU the range is half as wide: quantize there
            if producer.spelling == "__get__" and not self._grid(value):
                break  # a property such as x.T is not called by a name of its own
            if self.recording.unmoved(value) in self.rewritten and not self._grid(value):
                break  # what is written into a part of the quantized copy would be lost
            consumer, slot, value = producer, producer.data[0].slot, producer.data[0].value
        if value in self.on_grid:
            return
        self.edges.setdefault(value, wanted)
        self.owner.setdefault(value, consumer.index)
        edge = Edge(slot, value)
        if edge not in self.rows[consumer.index].edges:
            self.rows[consumer.index].edges.append(edge)

    def _root(self, value: int) -> int:
        return self.recording.followed(value, lambda site: site.index in self.transparent)

    def _grid(self, value: int) -> bool:
        """Whether a value is on a grid, made there or brought there by a quantizer on the way."""
        root = self._root(value)
        return root in self.on_grid or root in self.edges


def _writes(site: Site) -> bool:
    return bool(site.data) and (site.inplace or site.op == "setitem")


def _is_layer(site: Site) -> bool:
    return site.kind is OpKind.GEMM or site.op == "batch_norm"


def rule_text(rule: Rule | None) -> str:
    """A rule as people name it: its kind, its pattern and its line."""
    if rule is None:
        return "no rule"
    where = f" ({rule.place.file}:{rule.place.line})" if rule.place else ""
    return f"{rule.kind} '{rule.pattern}'{where}" if rule.pattern else f"{rule.kind} rule{where}"
