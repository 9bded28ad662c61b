"""Folding a batch norm into the convolution or linear layer before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Recording, Site

_GEMMS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip
_AT_A_TIME = 1 << 18  # elements of a weight
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def foldable(host: nn.Module, norm: nn.Module) -> bool:
    """Whether both are torch's own and hold plain parameters.

    A subclass may do more than its base (a batch norm with an activation inside), and a parametrized or tied
    weight is not ours to change; those keep their batch norm.
    """
    return (
        isinstance(host, _GEMMS)
        and type(norm) in _NORMS
        and isinstance(host._parameters.get("weight"), nn.Parameter)
        and norm.running_mean is not None
    )


def fold_obstacles(recording: Recording, modules: Mapping[str, nn.Module]) -> dict[int, str]:
    """The batch norms that cannot be folded into the layer whose result they read, by site, and why not."""
    pairs = [
        (recording.producer(site.data[0].value), site)
        for site in recording.sites
        if site.op == "batch_norm" and site.data
    ]
    return {
        norm.index: f"not folded into {gemm.name}: {obstacle}"
        for gemm, norm in pairs
        if gemm is not None and gemm.kind is OpKind.GEMM and gemm.weights
        if (obstacle := _obstacle(recording, modules, gemm, norm))
    }


def _obstacle(recording: Recording, modules: Mapping[str, nn.Module], gemm: Site, norm: Site) -> str:
    """Only this pair may use the weight, which is the layer's own parameter."""
    for site in (gemm, norm):
        if recording.calls[site.path] > 1:
            return f"{site.path} is called {recording.calls[site.path]} times"
    weight = recording.values[gemm.weights[0].value]
    if weight.kind != "parameter" or weight.name != f"{gemm.path}.weight":
        return f"the weight of {gemm.name} is not a parameter of its own"
    if len(weight.consumers) > 1:
        return f"the weight of {gemm.name} is used {len(weight.consumers)} times"
    if not foldable(modules[gemm.path], modules[norm.path]):
        return f"{gemm.path or 'the model'} or {norm.path or 'the model'} is no plain layer of torch"
    return ""


@torch.no_grad()
def fold_batch_norm(host: Any, norm: Any, *, axis: int) -> None:
    """Change ``host`` so that it computes what ``norm(host(x))`` computes in evaluation.

    ``weight * f`` and ``(bias - mean) * f + beta`` with ``f = gamma / sqrt(var + eps)``, computed in float64
    and rounded once. ``axis`` is that of the output channels in the weight. With groups, a transposed
    convolution has ``out_channels / groups`` entries there, group by group.
    """
    factor, shift = _affine(norm)
    weight = host.weight.detach()
    groups = groups_of(host, axis)
    leading = (groups, 1, -1) if axis == 1 else (1, -1)
    channels = weight.reshape(groups, -1, *weight.shape[1:]) if axis == 1 else weight[None]
    factor_of_weight = factor.reshape(*leading, *[1] * (channels.dim() - len(leading)))
    host.weight.data = _product(channels, factor_of_weight).reshape(weight.shape)
    _change_bias(host, factor, shift)


def _product(weight: Tensor, factor: Tensor) -> Tensor:
    """``weight * factor`` in the dtype of ``weight``, each product computed in float64.

    Some rows at a time: torch keeps all that it computes in float64, and what is large is memory that the
    system has to map, which takes ten times what the products do.
    """
    result = torch.empty_like(weight)
    rows = max(1, _AT_A_TIME * weight.shape[1] // max(1, weight.numel()))
    for first in range(0, weight.shape[1], rows):
        some = (slice(None), slice(first, first + rows))
        torch.mul(weight[some], factor[some] if factor.shape[1] > 1 else factor, out=result[some])
    return result


def groups_of(host: nn.Module, axis: int) -> int:
    """How many groups of output channels share an entry of the weight's ``axis``, that of those channels."""
    return int(getattr(host, "groups", 1)) if axis == 1 else 1


@torch.no_grad()
def fold_into_bias(host: Any, norm: Any) -> None:
    """Change the bias of ``host``, or give it one: ``(bias - mean) * f + beta``."""
    _change_bias(host, *_affine(norm))


def _change_bias(host: Any, factor: Tensor, shift: Tensor) -> None:
    bias = torch.zeros_like(shift) if host.bias is None else host.bias.double()
    new_bias = (bias * factor + shift).to(host.weight.dtype)
    if host.bias is None:
        host.bias = nn.Parameter(new_bias, requires_grad=host.weight.requires_grad)
    else:
        host.bias.data = new_bias


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """``(f, beta - mean * f)`` in float64."""
    factor = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return factor, shift
