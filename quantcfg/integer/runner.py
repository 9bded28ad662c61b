"""The handler of a converted model: integers where the plan quantizes, float where it says float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quantcfg.errors import warn
from quantcfg.integer import gemm
from quantcfg.integer.call import Call
from quantcfg.integer.kernels import GEMMS, KERNELS
from quantcfg.integer.moves import moved
from quantcfg.integer.values import Sum, integers_of, mark, quantize, requantize
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.preparation.intercept import Memo, Scope
from quantcfg.preparation.ops import METADATA, is_inplace, op_name
from quantcfg.preparation.places import Places, occurrence
from quantcfg.preparation.record import Site
from quantcfg.preparation.run import Action, replace_argument

FLOAT, PASSED = "float", "passed through"
_CLIPS = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"})


@dataclass(slots=True)
class Step:
    """One recorded site as the integer model runs it. ``largest``: what its accumulator can reach."""

    site: Site
    role: str
    action: Action
    largest: float | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """What a step made: ``exact`` before the output's rounding, or None where it was computed in float."""

    step: Step
    call: Call
    exact: Sum | None
    result: Any


class Watch(Protocol):
    """Told of every step that the plan quantizes; may put another result in the place of the integers'.

    ``compares`` says that it runs the fake-quant op too, on arguments that integers must not have written to.
    """

    compares: bool

    def before(self, call: Call) -> None:
        """Look at the arguments of a step, which it may be about to write into."""

    def see(self, made: Made, run_fake_quant: Callable[[], Any]) -> Any:
        """Return what the model goes on with."""


@dataclass(slots=True)
class Table:
    """The steps of each op of one call of one module, as it was counted, and the places they ran at."""

    places: Places
    steps: dict[str, list[Step | None]] = field(default_factory=dict)

    def layer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """None: integers are computed op by op."""


class IntegerRunner:
    """``tables`` has, for each module, one table per recorded call.

    A call or an occurrence beyond the recorded ones is the last one again, and what ran nowhere when it was
    recorded is in float, as in the prepared model.
    """

    def __init__(
        self, tables: dict[str, list[Table]], *, exact_bias: bool = False, watch: Watch | None = None
    ) -> None:
        self.tables = tables
        self.exact_bias = exact_bias
        self.watch = watch
        self._weights: dict[FakeQuantizeBase, tuple[Tensor, int, Tensor]] = {}

    def enter(self, path: str, call: int) -> Table | None:
        """The table of this call."""
        tables = self.tables.get(path)
        return tables[min(call, len(tables) - 1)] if tables else None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Nothing: every quantizer has its qparams."""

    def handle(self, scope: Scope, func: Callable[..., Any], args: Any, kwargs: Any, memo: Memo) -> Any:
        """Run one torch function, in integers where the plan quantizes it."""
        op = op_name(func)
        if op in METADATA:
            return func(*args, **kwargs)
        table: Table | None = scope.table
        row = table.steps.get(op) if table is not None else None
        ordinal = occurrence(scope, op, table.places) if table is not None and row else None
        step = row[min(ordinal, len(row) - 1)] if row and ordinal is not None else None
        if step is None:
            return func(*args, **kwargs)
        with torch.no_grad():
            return self._run(step, func, args, kwargs, memo)

    def _run(self, step: Step, func: Callable[..., Any], args: Any, kwargs: Any, memo: Memo) -> Any:
        twice = self.watch is not None and self.watch.compares and step.role not in (FLOAT, PASSED)
        call = self._call(step, func, _own(args, step) if twice else args, kwargs, memo)
        if step.role == FLOAT:
            return call.func(*call.args, **call.kwargs)
        if step.role == PASSED:
            return self._passed(call)
        if self.watch is not None:
            self.watch.before(call)
        exact = KERNELS[step.site.op](call) if step.site.op in KERNELS else None
        if exact is not None and self.exact_bias:
            exact = replace(exact, has_bias=False)
        self._check_accumulator(step, call, exact)
        result = _result(call, exact)
        if self.watch is None:
            return result
        fake_quant = partial(step.action.run, func, args, kwargs, memo)
        return self.watch.see(Made(step, call, exact, result), fake_quant)

    def _call(self, step: Step, func: Callable[..., Any], args: Any, kwargs: Any, memo: Memo) -> Call:
        """The call with its quantizers applied to what it reads."""
        action = step.action
        if action.edges or action.weights:
            args, kwargs = list(args), dict(kwargs)
            for slot, key, quantizer in action.edges:
                written = slot == (0,) and is_inplace(step.site.spelling)
                change = (
                    partial(_in_place, quantizer) if written else partial(_on_grid, ~key, quantizer, memo)
                )
                replace_argument(args, kwargs, slot, change)
            for slot, quantizer in action.weights:
                replace_argument(args, kwargs, slot, partial(self._weight, quantizer))
        return Call(step.site, func, tuple(args), kwargs, action.output)

    def _weight(self, quantizer: FakeQuantizeBase, weight: Tensor) -> Tensor:
        """The weight as integers, kept while the parameter stays as it is."""
        kept = self._weights.get(quantizer)
        version = -1 if weight.is_inference() else weight._version
        if kept is not None and kept[0] is weight and kept[1] == version:
            return kept[2]
        exact = quantize(weight, quantizer)
        self._weights[quantizer] = (weight, version, mark(exact.real(weight.dtype), exact))
        return self._weights[quantizer][2]

    def _passed(self, call: Call) -> Any:
        """An op that keeps its input's grid: the same op on the integers."""
        exact = KERNELS[call.site.op](call) if call.site.op in _CLIPS else None
        if exact is not None:
            return _real(call, exact)
        integers = moved(call)  # before the op runs, which may write into its input
        result = call.func(*call.args, **call.kwargs)
        for leaf, found in zip(_tensors(result), integers, strict=False):
            if found is not None and leaf.shape == found.terms[0].steps.shape:
                mark(leaf, found)
        return result

    def _check_accumulator(self, step: Step, call: Call, exact: Sum | None) -> None:
        """Once per op: how far its accumulator can go.

        Raises:
            NumericError: further than can be computed exactly here.
        """
        if step.largest is not None or exact is None or step.site.op not in GEMMS:
            return
        step.largest = gemm.bounded(GEMMS[step.site.op], call)
        gemm.refuse_inexact(step.site.name, step.largest)
        if step.largest > gemm.INT32_MAX and not is_wide(call):
            warn(
                f"{step.site.name}: its int32 accumulator could overflow: for the calibrated ranges it can "
                f"reach {step.largest:.4g}, and {gemm.INT32_MAX} is the end"
            )


def _own(args: Any, step: Step) -> Any:
    """Arguments that may be written into without the caller's noticing."""
    if not is_inplace(step.site.spelling) or not args or not isinstance(args[0], Tensor):
        return args
    first, exact = args[0].clone(), integers_of(args[0])
    return (first if exact is None else mark(first, exact), *args[1:])


def _in_place(quantizer: FakeQuantizeBase, x: Tensor) -> Tensor:
    """Put on a grid what an op is about to write into."""
    exact = integers_of(x)
    return _written(x, quantize(x.clone(), quantizer) if exact is None else requantize(exact, quantizer))


def _on_grid(key: int, quantizer: FakeQuantizeBase, memo: Memo, x: Any) -> Any:
    """Put a value on a grid once, however many ops of this forward read it."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    seen = memo.get(key)
    if seen is not None and seen[0] is x:
        return seen[1]
    exact = integers_of(x)
    found = quantize(x, quantizer) if exact is None else requantize(exact, quantizer)
    memo[key] = (x, mark(found.real(x.dtype), found))
    return memo[key][1]


def _result(call: Call, exact: Sum | None) -> Any:
    """What the op gives to the next one: real numbers that stand for integers."""
    if exact is not None:
        return _real(call, exact if call.output is None else requantize(exact, call.output))
    result = call.func(*call.args, **call.kwargs)
    if call.output is None:
        return result
    if isinstance(result, Tensor):
        return _quantized(call, result)
    items = list(result)
    for index, item in enumerate(items[: call.site.spec.outputs or None]):
        items[index] = _quantized(call, item)
    return getattr(type(result), "_make", type(result))(items)


def _quantized(call: Call, x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point() or call.output is None:
        return x
    found = quantize(x, call.output)
    return mark(found.real(x.dtype), found) if not is_inplace(call.site.spelling) else _written(x, found)


def _real(call: Call, exact: Sum) -> Tensor:
    first = next(leaf for leaf in _tensors((call.args, call.kwargs)) if leaf.is_floating_point())
    if is_inplace(call.site.spelling):
        return _written(first, exact)
    return mark(exact.real(first.dtype), exact)


def _written(x: Tensor, exact: Sum) -> Tensor:
    return mark(x.copy_(exact.real(x.dtype)), exact)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def is_wide(call: Call) -> bool:
    """Whether an operand has more than 8 bits."""
    found = (integers_of(x) for _, x in call.tensors())
    return any(gemm.is_wide(term) for exact in found if exact is not None for term in exact.terms)
