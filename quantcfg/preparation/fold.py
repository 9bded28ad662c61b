"""Folding a batch norm into the convolution or linear layer before it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantcfg.preparation.intercept import ScopedForward
from quantcfg.preparation.ops import OpKind

if TYPE_CHECKING:
    from quantcfg.preparation.record import Recording, Site

_GEMMS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip
_AT_A_TIME = 1 << 18  # elements of a weight
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_SIGNATURE = inspect.signature(F.batch_norm)


def is_own_batch_norm(module: nn.Module, func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call is that of ``F.batch_norm`` which the batch norm ``module`` makes in evaluation.

    Its statistics, affine and eps are the module's, whatever else the forward of a subclass does.
    """
    if func is not F.batch_norm:
        return False
    given = _SIGNATURE.bind(*args, **kwargs)
    given.apply_defaults()
    names = ("running_mean", "running_var", "weight", "bias")
    return (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_mean is not None
        and all(given.arguments[name] is getattr(module, name) for name in names)
        and (given.arguments["training"], given.arguments["eps"]) == (False, module.eps)
    )


def fold_obstacles(recording: Recording, modules: Mapping[str, nn.Module]) -> dict[int, str]:
    """The batch norms that cannot be folded into the layer whose result they read, by site, and why not."""
    norms = [site for site in recording.sites if site.op == "batch_norm" and site.data]
    return {
        norm.index: f"not folded into {gemm.name}: {obstacle}"
        for norm in norms
        for gemm, between in _gemm_before(recording, norm)
        if (obstacle := between or _obstacle(recording, modules, gemm, norm))
    }


def _gemm_before(recording: Recording, norm: Site) -> Iterator[tuple[Site, str]]:
    """The layer whose result the module of a batch norm reads, and what that module does to it first."""
    site, between = recording.producer(norm.data[0].value), ""
    while site is not None and site.data and _is_within(site, norm.path):
        between = f"{site.name} comes between"
        site = recording.producer(site.data[0].value)
    if site is not None and site.kind is OpKind.GEMM and site.weights:
        yield site, between


def _is_within(site: Site, path: str) -> bool:
    return bool(path) and f"{site.path}.".startswith(f"{path}.")


def _obstacle(recording: Recording, modules: Mapping[str, nn.Module], gemm: Site, norm: Site) -> str:
    """Only this pair may use the weight, which is the layer's own parameter."""
    if norm.index not in recording.own_batch_norms:
        return f"{norm.name} normalizes with more than the statistics and the affine of its module"
    if recording.counts[norm.path, norm.call][norm.counted] > 1:
        return f"{norm.path} calls batch_norm more than once"
    for site in (gemm, norm):
        if recording.calls[site.path] > 1:
            return f"{site.path} is called {recording.calls[site.path]} times"
    weight = recording.values[gemm.weights[0].value]
    if weight.kind != "parameter" or weight.name != f"{gemm.path}.weight":
        return f"the weight of {gemm.name} is not a parameter of its own"
    if len(weight.consumers) > 1:
        return f"the weight of {gemm.name} is used {len(weight.consumers)} times"
    if not isinstance(modules[gemm.path], _GEMMS):
        return f"{gemm.path or 'the model'} is no layer of torch"
    return ""


def leave_out(modules: Mapping[str, nn.Module], path: str) -> None:
    """Take a batch norm that was folded out of the model: torch's own, or what is one in a subclass.

    A subclass keeps its place and its forward, which may do more, an activation say; without statistics and
    affine, as torch has them too, and without the call of ``F.batch_norm``.
    """
    norm = modules[path]
    if type(norm) in _NORMS:
        parent, _, name = path.rpartition(".")
        modules[parent]._modules[name] = nn.Identity()
        return
    norm._parameters.update(dict.fromkeys(("weight", "bias")))
    norm._buffers.update(dict.fromkeys(("running_mean", "running_var")))
    forward = norm.__dict__["forward"]
    assert isinstance(forward, ScopedForward)
    forward.folded = True


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
