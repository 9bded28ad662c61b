"""What the hand-written backwards share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

_hardtanh_backward = torch.ops.aten.hardtanh_backward

_INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}

Gradients = tuple[Tensor | None, ...]


def keeps_sparse(backward: Callable[[Any, Tensor], Gradients]) -> Callable[[Any, Tensor], Gradients]:
    """A backward of dense gradients, made to take a sparse one and return one with the same elements.

    ``nn.Embedding(sparse=True)`` gives such, and its optimizer takes no others.
    """

    @wraps(backward)
    def either(ctx: Any, grad: Tensor) -> Gradients:
        if not grad.is_sparse:
            return backward(ctx, grad)
        grad_x, *others = backward(ctx, grad.to_dense())
        return None if grad_x is None else grad_x.sparse_mask(grad.coalesce()), *others

    return either


def is_differentiated() -> bool:
    """Whether the backward that runs is differentiated in turn, so that autograd must see what it does."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def where_inside(value: Tensor, steps: Tensor, quant_min: int, quant_max: int, *, out: Tensor) -> None:
    """Write ``value`` where the integers ``steps`` lie on the grid, else 0: one vectorised pass, no mask."""
    _hardtanh_backward.grad_input(value, steps, quant_min - 0.5, quant_max + 0.5, grad_input=out)


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
