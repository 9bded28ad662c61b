"""The plan: what a prepared model does at each op and why, as frozen values that can be printed or stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import nn

from quantcfg.config.spec import FakeQuantSpec
from quantcfg.errors import Diagnostic, Place
from quantcfg.numeric.dtypes import as_dtype
from quantcfg.preparation.assign import Assignment, Assignments, Role, rule_text
from quantcfg.preparation.flow import Dtypes, Unfused, dtypes_of, unfused_in
from quantcfg.preparation.hardware import Adjustment
from quantcfg.preparation.hosts import FakeQuants, is_quantizer_key
from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Recording

PLAN_VERSION = 1
FLOAT_BITS = 32
_NOT_COMPUTING = (OpKind.MOVE, OpKind.CLIP, OpKind.CREATE)


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """How one tensor is quantized."""

    dtype: str
    fake_quant: str
    observer: str
    qscheme: str


@dataclass(frozen=True, slots=True)
class OpRow:
    """One op site. ``params`` counts the elements of its weights, ``macs`` its multiply-accumulates.

    ``dtypes_in`` and ``dtype_out`` are those of the data it reads and makes; ``float`` is no grid. Inside a
    chain everything is ``float``: it never leaves the accumulator.
    """

    name: str
    owner: str
    module_type: str
    op: str
    role: str
    reason: str
    qconfig: str
    activation: TensorPlan | None
    weight: TensorPlan | None
    inputs: tuple[str, ...]
    rule: str
    place: Place | None
    beaten: tuple[str, ...]
    fused_into: str
    macs: int
    params: int
    shape: tuple[int, ...]
    dtypes_in: tuple[str, ...]
    dtype_out: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the model is quantized. Shares are of what can be counted: 1.0 when there is nothing."""

    ops: int
    quantized_ops: int
    macs: int
    quantized_macs: int
    params: int
    quantized_params: int
    weight_bits: float
    size_bytes: int
    float_size_bytes: int

    @property
    def ops_share(self) -> float:
        """Quantized ops over ops that compute."""
        return self.quantized_ops / self.ops if self.ops else 1.0

    @property
    def macs_share(self) -> float:
        """Multiply-accumulates of ops with quantized weights or operands over all."""
        return self.quantized_macs / self.macs if self.macs else 1.0

    @property
    def params_share(self) -> float:
        """Parameters in quantized weights over all parameters of the model."""
        return self.quantized_params / self.params if self.params else 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Every op site in the order it ran, what was never run, coverage and findings.

    ``unfused`` lists neighbours that a chip would run as one op and that are not one here, with the reason;
    ``adjustments`` what was changed for the target of the export.
    """

    stage: str
    model_class: str
    rows: tuple[OpRow, ...]
    coverage: Coverage
    never_run: tuple[str, ...]
    called_often: tuple[tuple[str, int], ...]
    unfused: tuple[Unfused, ...] = ()
    adjustments: tuple[Adjustment, ...] = ()
    findings: tuple[Diagnostic, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, for JSON. The shape is documented in docs/prepare.md and versioned."""
        shares = {name: getattr(self.coverage, name) for name in ("ops_share", "macs_share", "params_share")}
        return {
            "format_version": PLAN_VERSION,
            "stage": self.stage,
            "model": self.model_class,
            "ops": [asdict(row) for row in self.rows],
            "coverage": asdict(self.coverage) | shares,
            "never_run": list(self.never_run),
            "called_often": [{"module": name, "calls": calls} for name, calls in self.called_often],
            "unfused": [asdict(pair) for pair in self.unfused],
            "adjustments": [asdict(change) for change in self.adjustments],
            "findings": [asdict(finding) for finding in self.findings],
        }


def make_plan(
    model: nn.Module,
    recording: Recording,
    assignments: Assignments,
    *,
    stage: str,
    folded: dict[int, str],
    findings: Sequence[Diagnostic],
    adjustments: Sequence[Adjustment] = (),
) -> Plan:
    """Put the plan together. ``folded`` says what became of batch norms, by site."""
    rows = tuple(
        _row(row, dtypes, recording, assignments, folded)
        for row, dtypes in zip(assignments.rows, dtypes_of(assignments), strict=True)
    )
    leaves = [path for path, module in model.named_modules() if path and _is_leaf(path, module)]
    # The weights of some are handed to a function: their own forward never runs, but they do.
    read = {value.name.rpartition(".")[0] for value in recording.values if value.kind == "parameter"}
    return Plan(
        stage=stage,
        model_class=type(model).__name__,
        rows=rows,
        coverage=_coverage(model, recording, rows, assignments),
        never_run=tuple(path for path in leaves if path not in recording.calls and path not in read),
        called_often=tuple((path, n) for path, n in recording.calls.items() if n > 1 and path in set(leaves)),
        unfused=unfused_in(recording, assignments),
        adjustments=tuple(adjustments),
        findings=tuple(findings),
    )


def _is_leaf(path: str, module: nn.Module) -> bool:
    """Whether a module is the user's own and holds no other, quantizers aside."""
    if is_quantizer_key(path):
        return False
    return all(isinstance(child, FakeQuants) for child in module.children())


def _row(
    row: Assignment,
    dtypes: Dtypes,
    recording: Recording,
    assignments: Assignments,
    folded: dict[int, str],
) -> OpRow:
    site = row.site
    winner = row.decision.winner
    spec = row.decision.spec
    end = row.chain_end
    inputs = tuple(_input_text(edge.value, recording, assignments) for edge in row.edges)
    return OpRow(
        name=site.name,
        owner=site.path,
        module_type=recording.types[site.path],
        op=site.op,
        role=row.role.value,
        reason=folded.get(site.index) or row.reason or recording.unfoldable.get(site.index, ""),
        qconfig=spec.name if spec is not None and row.role in (Role.QUANTIZED, Role.FUSED) else "",
        activation=_tensor_plan(row.output),
        weight=_tensor_plan(row.weight),
        inputs=inputs,
        rule=rule_text(winner),
        place=winner.place if winner else None,
        beaten=tuple(rule_text(rule) for rule in row.decision.losers),
        fused_into=recording.sites[end].name if end is not None and end != site.index else "",
        macs=site.macs,
        params=sum(prod(recording.values[operand.value].shape) for operand in site.weights),
        shape=recording.values[site.outputs[0]].shape,
        dtypes_in=dtypes.inputs,
        dtype_out=dtypes.output,
    )


def _input_text(value: int, recording: Recording, assignments: Assignments) -> str:
    source, producer = recording.values[value], recording.producer(value)
    name = producer.name if producer is not None else source.name or source.kind
    return f"{name}: {assignments.inputs[value].dtype}"


def _tensor_plan(spec: FakeQuantSpec | None) -> TensorPlan | None:
    if spec is None:
        return None
    scheme = str(spec.kwargs.get("qscheme", "per_tensor_symmetric"))
    return TensorPlan(spec.dtype, spec.fake_quant, spec.observer, scheme)


def _coverage(
    model: nn.Module, recording: Recording, rows: Sequence[OpRow], assignments: Assignments
) -> Coverage:
    """Count ops that compute, and each weight once however often it is read."""
    pairs = zip(rows, assignments.rows, strict=True)
    computing = [row for row, item in pairs if item.site.kind not in _NOT_COMPUTING and not item.constant]
    weights = list(_quantized_weights(recording, assignments))
    weight_bits = sum(size * bits for size, bits in weights)
    params = sum(p.numel() for name, p in model.named_parameters() if not is_quantizer_key(name))
    quantized_params = min(sum(size for size, _ in weights), params)
    total_bits = weight_bits + (params - quantized_params) * FLOAT_BITS
    quantized = (Role.QUANTIZED.value, Role.FUSED.value)
    return Coverage(
        ops=len(computing),
        quantized_ops=sum(row.role in quantized for row in computing),
        macs=sum(row.macs for row in rows),
        quantized_macs=sum(row.macs for row in rows if row.role in quantized),
        params=params,
        quantized_params=quantized_params,
        weight_bits=total_bits / params if params else float(FLOAT_BITS),
        size_bytes=int(total_bits // 8),
        float_size_bytes=params * 4,
    )


def _quantized_weights(recording: Recording, assignments: Assignments) -> Iterator[tuple[int, int]]:
    """The size and the bits of each quantized weight; several ops may read it, or a part of it each."""
    parts: dict[int, dict[int, int]] = {}
    bits: dict[int, int] = {}
    for row in assignments.rows:
        if row.weight is None:
            continue
        for operand in row.site.weights:
            whole = recording.unmoved(operand.value)
            parts.setdefault(whole, {})[operand.value] = prod(recording.values[operand.value].shape)
            bits.setdefault(whole, as_dtype(row.weight.dtype).num_bits)
    for whole, sizes in parts.items():
        yield min(sum(sizes.values()), prod(recording.values[whole].shape)), bits[whole]
