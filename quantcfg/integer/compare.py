"""The integer model beside the fake-quant model, op by op: how many integers are equal, how many are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quantcfg.integer.convert import convert
from quantcfg.integer.gemm import INT32_MAX
from quantcfg.integer.kernels import GEMMS
from quantcfg.integer.runner import IntegerRunner, Made, is_wide
from quantcfg.integer.values import Sum, integers_of, mark, quantize
from quantcfg.preparation.intercept import interceptor_of
from quantcfg.preparation.record import tensors_in

Forward = Callable[[nn.Module], Any]


@dataclass(frozen=True, slots=True)
class OpCount:
    """One op: its integers against those of the fake-quant model, given that model's inputs.

    ``arithmetic`` is ``integer``, or ``float`` where the op has no integer kernel. An op whose 32 bits go out
    counts in steps of its accumulator. ``flowing`` counts what differs when every op is given the integers of
    the ops before it. ``largest`` is what the accumulator can reach for the calibrated ranges.
    """

    name: str
    op: str
    arithmetic: str
    num_values: int = 0
    equal: int = 0
    off_by_one: int = 0
    more: int = 0
    flowing: int = 0
    largest: float | None = None
    overflows: bool = False

    def __add__(self, other: OpCount) -> OpCount:
        sums = {name: getattr(self, name) + getattr(other, name)
                for name in ("num_values", "equal", "off_by_one", "more", "flowing")}  # fmt: skip
        return replace(other, **sums)


@dataclass(frozen=True, slots=True)
class IntegerReport:
    """Every op that gives integers, in the order they first ran."""

    ops: tuple[OpCount, ...]

    @property
    def num_values(self) -> int:
        """How many integers were compared."""
        return sum(op.num_values for op in self.ops)

    @property
    def equal_share(self) -> float:
        """Equal integers over all, each op given the fake-quant model's inputs."""
        return sum(op.equal for op in self.ops) / max(self.num_values, 1)

    @property
    def flowing_share(self) -> float:
        """Equal integers over all, each op given what the ops before it made."""
        return 1.0 - sum(op.flowing for op in self.ops) / max(self.num_values, 1)

    @property
    def first_difference(self) -> OpCount | None:
        """The first op that differs."""
        return next((op for op in self.ops if op.equal < op.num_values), None)

    @property
    def in_float(self) -> tuple[OpCount, ...]:
        """Ops on a grid that were computed in float."""
        return tuple(op for op in self.ops if op.arithmetic == "float")

    @property
    def overflowing(self) -> tuple[OpCount, ...]:
        """Ops whose int32 accumulator could overflow."""
        return tuple(op for op in self.ops if op.overflows)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        shares = {"equal_share": self.equal_share, "flowing_share": self.flowing_share}
        return {**shares, "num_values": self.num_values, "ops": [asdict(op) for op in self.ops]}


@torch.inference_mode(mode=False)
@torch.no_grad()
def compare_integers(model: nn.Module, forwards: Iterable[Forward], *, bias: str = "int32") -> IntegerReport:
    """Run a prepared model and its integer form side by side.

    Args:
        model: prepared, with all its qparams; not changed.
        forwards: each runs a model on one batch: ``[lambda m: m(images)]``.
        bias: as for `convert`.

    Raises:
        PrepareError: ``model`` is not a prepared one.
        NumericError: quantizers never observed anything.
    """
    beside, integer = _Beside(), _Alone()
    shadow, converted = convert(model, bias=bias), convert(model, bias=bias)
    _runner(shadow).watch, _runner(converted).watch = beside, integer
    counts: dict[str, OpCount] = {}
    for forward in forwards:
        beside.begin()
        integer.begin()
        forward(shadow)
        forward(converted)
        for count in _with_flow(beside, integer):
            counts[count.name] = counts[count.name] + count if count.name in counts else count
    return IntegerReport(tuple(counts.values()))


def _runner(model: nn.Module) -> IntegerRunner:
    interceptor = interceptor_of(model)
    assert interceptor is not None
    assert isinstance(interceptor.handler, IntegerRunner)
    return interceptor.handler


class _Beside:
    """Counts the differences of each op, and hands on the fake-quant model's result with its integers."""

    compares = True

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.seen: list[tuple[OpCount, Tensor]] = []

    def see(self, made: Made, run_fake_quant: Callable[[], Any]) -> Any:
        theirs = run_fake_quant()
        for ours, real in zip(tensors_in(made.result), tensors_in(theirs), strict=True):
            expected, found = _steps_of(made, real), integers_of(ours)
            if expected is None or found is None:
                _hand_on(real, made.exact)
                continue
            if _is_counted(made):
                steps = expected.terms[0].steps
                self.seen.append((_count(made, found.with_bias_in_steps().terms[0].steps, steps), steps))
            mark(real, expected if made.call.output is not None else found)
        return theirs


def _hand_on(real: Tensor, exact: Sum | None) -> None:
    if exact is not None and real.is_floating_point():
        mark(real, exact)


class _Alone:
    """Keeps what each op of the integer model makes."""

    compares = False

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.seen: list[tuple[str, Tensor]] = []

    def see(self, made: Made, run_fake_quant: Callable[[], Any]) -> Any:
        del run_fake_quant
        for tensor in tensors_in(made.result):
            found = integers_of(tensor)
            if found is not None and _is_counted(made):
                self.seen.append((made.step.site.name, found.with_bias_in_steps().terms[0].steps))
        return made.result


def _is_counted(made: Made) -> bool:
    """Ops with a quantizer, and those whose accumulator is their output."""
    ends_in_32_bits = made.step.role == "quantized" and made.step.site.op in GEMMS
    return made.call.output is not None or ends_in_32_bits


def _steps_of(made: Made, real: Tensor) -> Sum | None:
    """The integers of the fake-quant model's result: on its grid, or in steps of the accumulator."""
    if not real.is_floating_point():
        return None
    if made.call.output is not None:
        return quantize(real, made.call.output)
    term = None if made.exact is None else made.exact.with_bias_in_steps().only
    if term is None:
        return None
    return Sum((replace(term, steps=(real.double() / term.scale).round()),))


def _count(made: Made, found: Tensor, expected: Tensor) -> OpCount:
    distance = (found - expected).abs()
    same = (distance == 0) | (found.isnan() & expected.isnan())
    equal, by_one = int(same.sum()), int((distance == 1).sum())
    largest = made.step.largest
    return OpCount(
        name=made.step.site.name,
        op=made.step.site.op,
        arithmetic="float" if made.exact is None else "integer",
        num_values=found.numel(),
        equal=equal,
        off_by_one=by_one,
        more=found.numel() - equal - by_one,
        largest=largest,
        overflows=largest is not None and largest > INT32_MAX and not is_wide(made.call),
    )


def _with_flow(beside: _Beside, integer: _Alone) -> Iterable[OpCount]:
    """The counts of one forward, with what differs where integers alone flowed."""
    flowing = iter(integer.seen)
    for count, expected in beside.seen:
        _, found = next(flowing)
        differs = ~((found == expected) | (found.isnan() & expected.isnan()))
        yield replace(count, flowing=int(differs.sum()))
