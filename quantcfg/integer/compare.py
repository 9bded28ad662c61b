"""The integer model beside the fake-quant model, op by op: how many integers are equal, how many are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quantcfg.integer.call import Call
from quantcfg.integer.convert import convert
from quantcfg.integer.gemm import INT32_MAX
from quantcfg.integer.kernels import GEMMS, KERNELS, TABLES
from quantcfg.integer.runner import IntegerRunner, Made, is_wide
from quantcfg.integer.values import Sum, integers_of, mark, quantize
from quantcfg.preparation.intercept import interceptor_of
from quantcfg.preparation.tensors import tensors_in

Forward = Callable[[nn.Module], Any]


@dataclass(frozen=True, slots=True)
class OpCount:
    """One op: its integers against those of the fake-quant model, given that model's inputs.

    ``arithmetic`` is ``integer``, or ``float`` where the op has no integer kernel. An op whose 32 bits go out
    counts in steps of its accumulator. ``flowing`` counts what differs when every op is given the integers of
    the ops before it; ``own`` what differs then from the fake-quant op computed in float64, given the same:
    biases rounded to int32, and functions that are integers inside. All else is the rounding of float32.
    ``largest`` is what the accumulator can reach for the calibrated ranges.
    """

    name: str
    op: str
    arithmetic: str
    num_values: int = 0
    equal: int = 0
    off_by_one: int = 0
    more: int = 0
    flowing: int = 0
    own: int = 0
    largest: float | None = None
    overflows: bool = False

    def __add__(self, other: OpCount) -> OpCount:
        sums = {name: getattr(self, name) + getattr(other, name)
                for name in ("num_values", "equal", "off_by_one", "more", "flowing", "own")}  # fmt: skip
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
    def own_share(self) -> float:
        """Equal integers over all, beside the fake-quant model computed in float64; 1 where both are one."""
        return 1.0 - sum(op.own for op in self.ops) / max(self.num_values, 1)

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
        names = ("equal_share", "flowing_share", "own_share")
        shares = {name: getattr(self, name) for name in names}
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

    def before(self, call: Call) -> None:
        """Nothing: the fake-quant op has its own arguments."""

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


@dataclass(frozen=True, slots=True)
class _Flowed:
    """What an op of the integer model made, and how much of it the fake-quant op in float64 makes not."""

    steps: Tensor
    own: int


class _Alone:
    """Keeps what each op of the integer model makes, beside the same op in float64."""

    compares = False

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.seen: list[_Flowed] = []
        self.wide: Any = None
        self.inside: dict[int, tuple[Tensor, Tensor]] = {}  # of chains, in float64, by what stands for it

    def before(self, call: Call) -> None:
        """Run the op in float64, on the numbers that integers stand for; a table is its float op already."""
        self.wide = None
        if call.site.op in KERNELS and call.site.op not in TABLES:
            args, kwargs = pytree.tree_map(self._wide, (call.args, call.kwargs))
            result = call.func(*args, **kwargs)
            self.wide = result if call.output is None else call.output(result)

    def see(self, made: Made, run_fake_quant: Callable[[], Any]) -> Any:
        del run_fake_quant
        wide = tensors_in(self.wide) if made.exact is not None else []
        for tensor, real in zip_longest(tensors_in(made.result), wide):
            found = integers_of(tensor)
            if found is not None and _is_counted(made):
                steps = found.with_bias_in_steps().terms[0].steps
                expected = None if real is None else _steps_of(made, real)
                own = 0 if expected is None else _num_different(steps, expected.terms[0].steps)
                self.seen.append(_Flowed(steps, own))
                self.inside.pop(id(tensor), None)  # written into, where the op is in place
            elif real is not None:
                self.inside[id(tensor)] = (tensor, real)
        return made.result

    def _wide(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        if id(x) in self.inside:
            return self.inside[id(x)][1].clone()
        exact = integers_of(x)
        return x.to(torch.float64, copy=True) if exact is None else exact.real(torch.float64)


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


def _num_different(found: Tensor, expected: Tensor) -> int:
    return int((~((found == expected) | (found.isnan() & expected.isnan()))).sum())


def _count(made: Made, found: Tensor, expected: Tensor) -> OpCount:
    equal = found.numel() - _num_different(found, expected)
    by_one = int(((found - expected).abs() == 1).sum())
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
    for (count, expected), flowed in zip(beside.seen, integer.seen, strict=True):
        yield replace(count, flowing=_num_different(flowed.steps, expected), own=flowed.own)
