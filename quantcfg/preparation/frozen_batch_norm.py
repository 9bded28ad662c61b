"""Frozen batch norms, which detectors write out as a product and a sum, and which are folded all the same."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantcfg.preparation.intercept import scope_of

_TENSORS = {"weight", "bias", "running_mean", "running_var"}
_EPS = 1e-5  # torch's, where the module does not say


class FrozenForward:
    """What the forward of a frozen batch norm computes, in one call of ``F.batch_norm``.

    Where nothing is quantized, one that was not folded runs as it is written: its bits are others.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, ...) with the buffers of the module."""
        scope = scope_of(self.module)
        if scope is not None and scope.substitute is None and not scope.interceptor.active:
            result: Tensor = type(self.module).forward(self.module, x)
            return result
        return normalized(self.module, x)


def normalized(norm: Any, x: Tensor) -> Tensor:
    """``x`` as a batch norm with these statistics and this affine leaves it in evaluation."""
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def call_batch_norm(model: nn.Module) -> None:
    """Let every frozen batch norm call ``F.batch_norm``, so that it can be folded as others are.

    One is known by what it computes: it has the four buffers and nothing else, and its forward gives what a
    batch norm gives. The class, the buffers and the names stay.
    """
    module: Any
    for module in model.modules():
        if _has_the_buffers(module) and _is_batch_norm(module):
            module.eps = getattr(module, "eps", _EPS)
            module.__dict__["forward"] = FrozenForward(module)


def is_frozen(module: nn.Module) -> bool:
    """Whether a module is one whose forward `call_batch_norm` replaced."""
    forward = module.__dict__.get("forward")
    return isinstance(getattr(forward, "original", forward), FrozenForward)


def _has_the_buffers(module: nn.Module) -> bool:
    buffers = {name: buffer for name, buffer in module._buffers.items() if name != "num_batches_tracked"}
    alone = not module._parameters and not module._modules and "forward" not in module.__dict__
    return alone and set(buffers) == _TENSORS and all(map(_is_a_row, buffers.values()))


def _is_a_row(buffer: Tensor | None) -> bool:
    return buffer is not None and buffer.dim() == 1 and buffer.is_floating_point() and not buffer.is_meta


@torch.no_grad()
def _is_batch_norm(module: Any) -> bool:
    twin = copy.deepcopy(module).double()
    twin.eps = getattr(twin, "eps", _EPS)
    channels = len(twin.running_mean)
    x = torch.linspace(-2, 3, 4 * channels, dtype=torch.float64, device=twin.running_mean.device)
    x = x.reshape(2, channels, 2, 1)
    try:
        return torch.allclose(twin(x), normalized(twin, x), rtol=1e-9, atol=1e-12)
    except Exception:  # whatever a forward that is none raises about such an input
        return False
