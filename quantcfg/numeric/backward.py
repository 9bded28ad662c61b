"""What the hand-written backwards share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_hardtanh_backward = torch.ops.aten.hardtanh_backward

_INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}

Gradients = tuple[Tensor | None, ...]
Backward = Callable[[Any, Tensor], Gradients]
Grid = tuple[int, int]  # quant_min, quant_max


def hand_written(backward: Backward) -> Backward:
    """A backward of dense gradients, made to keep sparse ones sparse.

    ``nn.Embedding(sparse=True)`` gives sparse gradients, and its optimizer takes no others. Compiled code is
    differentiated once.
    """
    once = once_differentiable(backward)

    @wraps(backward)
    def run(ctx: Any, grad: Tensor) -> Gradients:
        chosen = once if torch.is_grad_enabled() and torch.compiler.is_compiling() else backward
        if not grad.is_sparse:
            return chosen(ctx, grad)
        grad_x, *others = chosen(ctx, grad.to_dense())
        return None if grad_x is None else grad_x.sparse_mask(grad.coalesce()), *others

    return run


def is_differentiated() -> bool:
    """Whether the backward that runs is differentiated in turn, so that autograd must see what it does."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def in_backward(scale: Tensor, grad: Tensor) -> Tensor:
    """``scale``, which a compiler can know in backward only: the sum of nothing, 0, is one of the gradient.

    Else it computes in forward what is clipped, and keeps a bool for each element, which it stores one by
    one: more than 20 copies of the tensor.
    """
    return scale + grad[:0].sum() if torch.compiler.is_compiling() else scale


def straight_through(part: tuple[Any, ...], grid: Grid) -> None:
    """The gradient of a part of a leaf, from the leaf: (x, scale, zero_point, grad, grad_x)."""
    x, scale, zero_point, grad, grad_x = part
    place = x / scale if torch.compiler.is_compiling() else torch.div(x, scale, out=grad_x)
    if zero_point is not None:
        place.round_().add_(zero_point)
    _where_inside(grad.to(place.dtype), place, grid, out=grad_x)


def learned_step(part: tuple[Any, ...], grid: Grid) -> None:
    """The gradients of a part and of its step: (x, step, zero_point, grad, grad_x, grad_step).

    Written to grad_x, added to grad_step; either may be None.
    """
    x, step, zero_point, grad, grad_x, grad_step = part
    position = x / step
    steps = position.round() if zero_point is None else position.round().add_(zero_point)
    place = position if zero_point is None else steps
    wide = grad.to(steps.dtype)
    if grad_x is not None:
        _where_inside(wide, place, grid, out=grad_x)
    if grad_step is not None:
        slope = _slope(position, place, steps, zero_point, grid)
        grad_step.add_(sum_to(grad_step, slope.mul_(wide)))


def _slope(position: Tensor, place: Tensor, steps: Tensor, zero_point: Tensor | None, grid: Grid) -> Tensor:
    """The derivative of the result by the step: the rounding error on the grid, else the end it is beyond."""
    if torch.compiler.is_compiling():
        offset = 0.0 if zero_point is None else zero_point
        return _choose(place, grid, grid[0] - offset, steps - offset - position, grid[1] - offset)
    _where_inside(position, place, grid, out=position)
    return remove(steps.clamp_(*grid), zero_point).sub_(position)


def remove(steps: Tensor, zero_point: Tensor | None) -> Tensor:
    """``steps`` without the zero point, in place."""
    return steps if zero_point is None else steps.sub_(zero_point)


def sum_to(target: Tensor, values: Tensor) -> Tensor:
    """The sum of ``values`` over what broadcasts over them in ``target``, in its shape and dtype."""
    return values.sum_to_size(target.shape).to(target.dtype)


def _where_inside(value: Tensor, place: Tensor, grid: Grid, *, out: Tensor) -> None:
    """Write ``value`` where ``place``, rounded, lies on the grid, else 0: one vectorised pass, no mask."""
    if torch.compiler.is_compiling():
        out.copy_(_choose(place, grid, 0.0, value, 0.0))
    else:
        _hardtanh_backward.grad_input(value, place, *_beyond(grid, place.dtype), grad_input=out)


def _choose(place: Tensor, grid: Grid, below: Any, inside: Tensor, above: Any) -> Tensor:
    """``inside`` where ``place``, rounded, lies on the grid, else what stands for that side of it.

    For a compiler: to clamp, or to mask both sides at once, takes it twice the instructions.
    """
    low, high = _beyond(grid, place.dtype)
    return torch.where(place <= low, below, torch.where(place >= high, above, inside))


def _beyond(grid: Grid, dtype: torch.dtype) -> tuple[float, float]:
    """The first numbers of ``dtype`` on either side of the grid that are rounded to an integer beyond it."""
    quant_min, quant_max = grid
    return -_first_beyond(-quant_min, dtype), _first_beyond(quant_max, dtype)


def _first_beyond(end: int, dtype: torch.dtype) -> float:
    half_way = end + 0.5
    # It is rounded to even: from an odd end it leaves the grid, from an even one it stays.
    spacing = 0.0 if end % 2 else torch.finfo(dtype).eps * 2.0 ** (math.frexp(half_way)[1] - 1)
    return half_way + spacing


def where_zero(flags: Tensor, value: Tensor, out: Tensor) -> None:
    """Write ``value`` where the int8 ``flags`` are 0, and 0 where they are 1 or -1."""
    if torch.compiler.is_compiling():
        # With a comparison here the compiler would keep its bool result for backward and not the flags, and
        # it stores and loads bools one by one: 15 copies of the tensor, this 2.6.
        bits = _INTEGERS[value.dtype]
        out.copy_((value.view(bits) & ((flags.to(bits) & 1) - 1)).view(value.dtype))
    else:
        # torch.where over bytes is not vectorised on a CPU: 2.4 copies, this 1.7.
        _hardtanh_backward.grad_input(value, out.copy_(flags), -0.5, 0.5, grad_input=out)
