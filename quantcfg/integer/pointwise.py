"""Ops on single values: sums and products of two tensors, and everything else by a table."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quantcfg.integer.call import Call
from quantcfg.integer.values import Sum, Term, broadcast_shapes, integers_of, quantize

MAX_ENTRIES = 1 << 17  # of a table: every integer of a 16-bit grid, and of a difference of two


def add(call: Call) -> Sum | None:
    """``add`` and ``sub`` of two tensors, or of a tensor and a number: nothing rounds before the one rule."""
    left, right = _side(call, 0, "input"), _side(call, 1, "other")
    if left is None or right is None:
        return None
    sign = float(call.get(2, "alpha", 1)) * (-1.0 if call.site.op in ("sub", "rsub") else 1.0)
    if call.site.op == "rsub":
        left, right = right, left
    return _joined(left, _times(right, sign))


def _side(call: Call, position: int, name: str) -> Sum | None:
    """One side of an add; a number, or a tensor of one, is an offset."""
    value = call.get(position, name)
    found = integers_of(value)
    if found is not None:
        unclipped = found.low == -math.inf and found.high == math.inf
        return found if unclipped else None
    if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
        return Sum((), torch.as_tensor(value).double())
    return None


def _times(exact: Sum, factor: float) -> Sum:
    if factor == 1.0:
        return exact
    terms = tuple(Term(t.steps, t.scale * factor) for t in exact.terms)
    return replace(exact, terms=terms, offset=None if exact.offset is None else exact.offset * factor)


def _joined(left: Sum, right: Sum) -> Sum | None:
    """The terms of both, an accumulator with a bias first; None where both sides are numbers."""
    if right.has_bias and not left.has_bias:
        left, right = right, left
    right = right.with_bias_in_steps()
    if right.offset is not None:
        left = left.with_bias_in_steps()
    offsets = [x for x in (left.offset, right.offset) if x is not None]
    offset = offsets[0] + offsets[1] if len(offsets) == 2 else next(iter(offsets), None)
    terms = (*left.terms, *right.terms)
    if not terms:
        return None
    shape = broadcast_shapes(*(t.steps.shape for t in terms))
    spread = tuple(replace(t, steps=t.steps.expand(shape)) for t in terms)
    return Sum(spread, offset, has_bias=left.has_bias)


def mul(call: Call) -> Sum | None:
    """The product of two tensors, step by step; with a number it is a table."""
    left, right = call.term_at(0, "input"), call.term_at(1, "other")
    if left is None or right is None:
        return table(call)
    return Sum((Term(left.steps * right.steps, left.scale * right.scale),))


def add_or_table(call: Call) -> Sum | None:
    """A sum of two tensors; with a number it is a table, where the tensor is on a grid."""
    return table(call) or add(call)


def table(call: Call) -> Sum | None:
    """Any function of one tensor's values: looked up by integer.

    The table holds, for every integer of the input's grid, what the float function makes of its real value,
    quantized by the output's quantizer: it equals the fake-quant model.
    """
    source = _only_operand(call)
    if source is None or call.output is None or call.output.ch_axis >= 0:
        return None
    key, x, term = source
    return _look_up(call, key, x, term, call.output)


def _only_operand(call: Call) -> tuple[Any, Tensor, Term] | None:
    """The one tensor on a grid among arguments that are otherwise numbers."""
    large = [(key, x) for key, x in call.tensors() if x.numel() > 1 or integers_of(x) is not None]
    if len(large) != 1:
        return None
    key, x = large[0]
    found = integers_of(x)
    term = None if found is None else found.only
    return (key, x, term) if term is not None and _has_table(term) else None


def _look_up(call: Call, key: Any, x: Tensor, term: Term, output: Any) -> Sum:
    values = call.replaced({key: _column(term, x)[:, 0]}).reshape(-1)
    entries, index = quantize(values, output), _row(term)
    found = entries.mapped(lambda made: made[index])
    return found if not bool(term.steps.isnan().any()) else _with_nan(found, term.steps)


def prelu(call: Call) -> Sum | None:
    """``prelu``: a table, or one for each channel where each has a slope of its own."""
    x, weight = call.get(0, "input"), call.get(1, "weight")
    if weight.numel() == 1:
        return table(call)
    exact = call.sum_at(0, "input")
    term = None if exact is None else exact.only
    if call.output is None or call.output.ch_axis >= 0 or term is None or not _has_table(term):
        return None
    entries = quantize(call.func(_column(term, x).expand(-1, weight.numel()), weight), call.output)
    channels = torch.arange(weight.numel(), device=x.device).reshape(-1, *[1] * (x.dim() - 2))
    index = _row(term)
    return entries.mapped(lambda made: made[index, channels])


def _has_table(term: Term) -> bool:
    return term.bounds is not None and term.per_tensor and term.bounds[1] - term.bounds[0] < MAX_ENTRIES


def _column(term: Term, x: Tensor) -> Tensor:
    """The real value of every integer of a grid, one below the other, in the dtype of ``x``."""
    low, high = term.bounds or (0, 0)
    steps = torch.arange(low, high + 1, dtype=torch.float64, device=x.device)
    return Sum((Term(steps, term.scale.reshape(())),)).real(x.dtype)[:, None]


def _row(term: Term) -> Tensor:
    """The row of each value in such a column."""
    low, _ = term.bounds or (0, 0)
    return term.steps.nan_to_num(0.0).long() - low


def _with_nan(exact: Sum, where: Tensor) -> Sum:
    return exact.mapped(lambda steps: torch.where(where.isnan(), torch.nan, steps))


def clip(call: Call) -> Sum | None:
    """ReLU, ReLU6, hardtanh and clamp: a bound on an accumulator, a clip of integers on a grid.

    A bound between two integers is rounded as the one rule says.
    """
    exact = call.sum_at(0, "input")
    ends = _ends(call)
    if exact is None or ends is None:
        return None
    low, high = max(exact.low, ends[0]), min(exact.high, ends[1])
    term = exact.only
    if term is None or call.output is not None:
        return replace(exact, low=low, high=high)
    steps = term.steps
    if low > -math.inf:
        steps = steps.maximum((low / term.scale).round())
    if high < math.inf:
        steps = steps.minimum((high / term.scale).round())
    return Sum((replace(term, steps=steps),))


def _ends(call: Call) -> tuple[float, float] | None:
    op = call.site.op
    if op in ("relu", "relu6"):
        return 0.0, 6.0 if op == "relu6" else math.inf
    names = {"clamp_min": ("min", ""), "clamp_max": ("", "max"), "hardtanh": ("min_val", "max_val")}
    low_name, high_name = names.get(op, ("min", "max"))
    default = 1.0 if op == "hardtanh" else math.inf
    low = call.get(1, low_name, -default) if low_name else -math.inf
    high = call.get(2 if low_name else 1, high_name, default) if high_name else math.inf
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    if any(isinstance(end, Tensor) and end.numel() != 1 for end in ends):
        return None
    return float(ends[0]), float(ends[1])
