"""Expressions with the gradients of fake quantization, for what cannot run a hand-written backward.

The transforms of ``torch.func`` (grad, vmap, jvp, ...) differentiate what they see. They get the quantized
value plus a surrogate's difference from itself: 0 in value, and the surrogate's derivative. A backward that
is differentiated in turn gets products of its gradient with constants: the second derivatives are the same.
The formulas are in `quantcfg.numeric.ops`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def with_gradient_of(surrogate: Tensor, value: Tensor) -> Tensor:
    """``value`` in its bits, with the derivative of ``surrogate``, which is finite and of the same shape."""
    return value.detach() + (surrogate - surrogate.detach()).to(value.dtype)


def straight_through(x: Tensor, steps: Tensor, bounds: tuple[int, int]) -> Tensor:
    """``x`` where the integers ``steps`` lie on the grid, else 0."""
    return torch.where(inside(steps, bounds), x, torch.zeros_like(x))


def learned_step(x: Tensor, steps: Tensor, position: Tensor, learned: Tensor, end: Tensor) -> Tensor:
    """``x`` plus the rounding error in steps where it lies on the grid, else the ``end`` that it is beyond.

    ``steps`` are the integers before clamping, ``position`` the same before rounding, ``end`` after clamping;
    all three without the zero point.
    """
    error = (steps - position).detach()
    return torch.where(steps == end, x + learned * error, learned * end)


def learned_clip(x: Tensor, bound: Tensor, learned: Tensor) -> Tensor:
    """``x`` within the bound, else what was ``learned`` for the side that it is beyond."""
    return torch.where(x.detach().abs() < bound, x, learned * x.detach().sign())


def passed(grad: Tensor, where: Tensor) -> Tensor:
    """``grad`` where it passes, else 0."""
    return torch.where(where, grad, 0.0)


def inside(steps: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Whether the integers ``steps`` lie on the grid."""
    steps = steps.detach()
    return (steps >= bounds[0]) & (steps <= bounds[1])
