"""A ReLU for compiled graphs in which its result is quantized at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quantcfg.numeric.backward import where_zero


def relu(x: Tensor, inplace: bool = False) -> Tensor:  # noqa: ARG001 - of F.relu: nobody reads x again
    """``max(x, 0)``, which keeps one int8 per element for backward.

    A compiler that need not keep the result, since what follows is its quantized copy, keeps a bool for each
    element, and stores and loads those one by one: 25 times what fake quantization takes.

    Shapes:
        x: any, of floats. dx = dy where x > 0 or x is NaN, else 0.
    """
    result: Tensor = _ReLU.apply(x)  # type: ignore[no-untyped-call]
    return result


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result = torch.relu(x)
        # 1 where the result is 0, without a comparison: its bool would be what is kept.
        ctx.save_for_backward((1 - result.clamp(max=1).ceil()).to(torch.int8))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (is_zero,) = ctx.saved_tensors
        grad_x = torch.empty_like(grad)
        where_zero(is_zero, grad, grad_x)
        return grad_x
