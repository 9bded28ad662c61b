"""Averages: integer sums over windows, whose count goes into the scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantcfg.integer.call import Call
from quantcfg.integer.values import Sum, Term


def mean(call: Call) -> Sum | None:
    """``mean`` and ``sum`` over axes."""
    term = call.term_at(0, "input")
    if term is None or not term.per_tensor:
        return None
    found = call.replaced({_first_key(call): term.steps})
    if call.site.op == "sum":
        return Sum((Term(found, term.scale),))
    count = term.steps.numel() / max(found.numel(), 1)
    return Sum((Term((found * count).round(), term.scale / count),))


def _first_key(call: Call) -> int | str:
    return 0 if call.args else "input"


def avg_pool(call: Call) -> Sum | None:
    """``avg_pool1d`` to ``avg_pool3d``: each window's sum, over the count that the float op divides by."""
    term = call.term_at(0, "input")
    if term is None or not term.per_tensor:
        return None
    num_axes = int(call.site.op[-2])
    averages = call.replaced({_first_key(call): term.steps})
    counts = _window_counts(call, term.steps, num_axes, averages)
    return Sum((Term((averages * counts).round(), term.scale / counts),))


def _window_counts(call: Call, x: Tensor, num_axes: int, averages: Tensor) -> Tensor:
    """What each window's sum is divided by."""
    if override := call.get(6, "divisor_override"):
        return torch.full_like(averages, float(override))
    kernel, padding = (
        _tuple(call.get(1, "kernel_size"), num_axes),
        _tuple(call.get(3, "padding", 0), num_axes),
    )
    stride = _tuple(call.get(2, "stride") or kernel, num_axes)
    padded = call.get(5, "count_include_pad", True)
    counts = torch.ones((), dtype=torch.float64, device=x.device)
    for axis in range(num_axes):
        length = x.shape[axis - num_axes]
        along = _counts_along(length, averages.shape[axis - num_axes], kernel[axis], stride[axis],
                              padding[axis], padded=bool(padded))  # fmt: skip
        counts = counts * along.to(x.device).reshape(-1, *[1] * (num_axes - axis - 1))
    return counts.expand_as(averages)


def _counts_along(
    length: int, num_windows: int, kernel: int, stride: int, padding: int, *, padded: bool
) -> Tensor:
    """How many positions each window covers along one axis, those of the padding counted or not."""
    first = torch.arange(num_windows, dtype=torch.float64) * stride - padding
    last = (first + kernel).clamp(max=length + padding)
    return last - first if padded else last.clamp(max=length) - first.clamp(min=0)


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * length if len(values) == 1 else values


def adaptive_avg_pool(call: Call) -> Sum | None:
    """``adaptive_avg_pool1d`` to ``3d``: sums as products with matrices of 0 and 1, axis by axis."""
    term = call.term_at(0, "input")
    if term is None or not term.per_tensor:
        return None
    num_axes = int(call.site.op[-2])
    sizes = _tuple(call.get(1, "output_size"), num_axes)
    steps, counts = term.steps, torch.ones((), dtype=torch.float64, device=term.steps.device)
    for axis, size in enumerate(sizes):
        length = steps.shape[axis - num_axes]
        windows = _adaptive_windows(length, int(size or length)).to(steps.device)
        steps = (steps.movedim(axis - num_axes, -1) @ windows.T).movedim(-1, axis - num_axes)
        counts = counts * windows.sum(1).reshape(-1, *[1] * (num_axes - axis - 1))
    return Sum((Term(steps, term.scale / counts.expand_as(steps)),))


def _adaptive_windows(length: int, size: int) -> Tensor:
    """``(size, length)``; row ``i`` is 1 from ``floor(i * length / size)`` up to ``ceil`` of the next."""
    windows = torch.zeros(size, length, dtype=torch.float64)
    for index in range(size):
        windows[index, index * length // size : -((-(index + 1) * length) // size)] = 1.0
    return windows
