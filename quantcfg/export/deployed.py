"""The model as it is deployed: batch norms folded, and float32 where a format has no ops for bfloat16."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quantcfg.preparation.live_batch_norm import fold_live_batch_norms


def deployed(model: nn.Module, *, in_float32: bool) -> nn.Module:
    """Return a copy of a prepared model as a file will have it; the original is not changed.

    Batch norms that ``bn: keep`` or ``freeze`` left are folded. With ``in_float32`` a model in bfloat16
    computes in float32, with the values that its parameters have.
    """
    copied = sharing_copy(model)
    fold_live_batch_norms(copied)
    return use_float32(copied) if in_float32 else copied


def sharing_copy(model: nn.Module) -> nn.Module:
    """A copy whose parameters are others but lie in the same memory, which neither may write to."""
    parameters = {p for module in model.modules() for p in module._parameters.values() if p is not None}
    memo = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in parameters}
    return copy.deepcopy(model, memo)


def is_bfloat16(model: nn.Module) -> bool:
    """Whether a tensor of the model is in bfloat16."""
    return any(tensor.dtype is torch.bfloat16 for tensor in (*model.parameters(), *model.buffers()))


def use_float32(model: nn.Module) -> nn.Module:
    """Change every tensor of a model in bfloat16, and every one it will be called with, to float32."""
    if is_bfloat16(model):
        model._apply(wide)  # type: ignore[no-untyped-call]
        model.register_forward_pre_hook(_widen_arguments, prepend=True, with_kwargs=True)
    return model


def wide_arguments(arguments: Any) -> Any:
    """Arguments of a call with float32 in the place of bfloat16."""
    return pytree.tree_map_only(Tensor, wide, arguments)


def wide(x: Tensor) -> Tensor:
    """``x``, in float32 where it is in bfloat16."""
    return x.float() if x.dtype is torch.bfloat16 else x


def _widen_arguments(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    del module
    arguments: tuple[Any, Any] = wide_arguments((args, kwargs))
    return arguments
