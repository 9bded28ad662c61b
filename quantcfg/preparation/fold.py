"""Folding a batch norm into the convolution or linear layer before it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantcfg.preparation.frozen_batch_norm import is_frozen
from quantcfg.preparation.intercept import ScopedForward, Substitute, uninstall
from quantcfg.preparation.ops import OpKind

if TYPE_CHECKING:
    from quantcfg.preparation.record import Recording, Site

_GEMMS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip
_CALLS = (
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear,
)  # fmt: skip
_PLACES = {"input": 0, "weight": 1, "bias": 2}
_FORWARDS = frozenset(kind.forward for kind in _GEMMS)
_AT_A_TIME = 1 << 18  # elements of a weight
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
FOLDED = ("weight", "bias", "running_mean", "running_var")
_BATCH_NORM = {
    name: (position, parameter.default)
    for position, (name, parameter) in enumerate(inspect.signature(F.batch_norm).parameters.items())
}


def is_own_batch_norm(module: nn.Module, func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call is that of ``F.batch_norm`` which the batch norm ``module`` makes in evaluation.

    Its statistics, affine and eps are the module's, whatever else the forward of a subclass does.
    """
    if func is not F.batch_norm:
        return False

    def given(name: str) -> Any:
        position, default = _BATCH_NORM[name]
        return _argument(args, kwargs, position, name, default)

    return (
        (isinstance(module, nn.modules.batchnorm._BatchNorm) or is_frozen(module))
        and getattr(module, "running_mean", None) is not None
        and all(given(name) is getattr(module, name) for name in FOLDED)
        and (given("training"), given("eps")) == (False, module.eps)
    )


def is_own_layer(module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether a call of a convolution or ``F.linear`` takes weight and bias of the layer ``module``."""
    if not isinstance(module, _GEMMS):
        return False
    # Not by attribute: a parametrized weight would be computed, and its modules called, once more.
    return all(
        _argument(args, kwargs, _PLACES[name], name) is module._parameters.get(name)
        for name in ("weight", "bias")
    )


def _argument(args: Any, kwargs: Any, position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def normalizes(module: nn.Module) -> bool:
    """Whether a module is a batch norm with running statistics, and was not folded into what precedes it."""
    return (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_mean is not None
        and "running_mean" not in module._non_persistent_buffers_set
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
    """What is in the way in any call: the weight that is folded into is the same in all of them."""
    pairs = _pairs(recording, gemm, norm)
    called = (site.path for site in (gemm, norm) if not pairs and recording.calls[site.path] > 1)
    for path in called:
        return f"{path} is called {recording.calls[path]} times"
    calls = max(1, len(pairs))
    found = (_obstacle_in_call(recording, modules, *pair, calls) for pair in pairs or [(gemm, norm)])
    return next(filter(None, found), "")


def _pairs(recording: Recording, gemm: Site, norm: Site) -> list[tuple[Site, Site]]:
    """The calls of a layer with those of the batch norm behind it; none where one runs without the other."""
    held = (recording.values[operand.value] for operand in (*gemm.weights[:1], *norm.others[:1]))
    gemms, norms = ([recording.sites[index] for index in value.consumers] for value in held)
    behind = [recording.sole_consumer(call.outputs[0]) for call in gemms]
    together = sorted(site.index for site in behind if site is not None) == [site.index for site in norms]
    return [(first, second) for first, second in zip(gemms, behind, strict=True) if second and together]


def _obstacle_in_call(
    recording: Recording, modules: Mapping[str, nn.Module], gemm: Site, norm: Site, calls: int
) -> str:
    """Only this pair may use the weight, which is the layer's own parameter, once in each of ``calls``."""
    if norm.index not in recording.own_batch_norms:
        return f"{norm.name} normalizes with more than the statistics and the affine of its module"
    if recording.counts[norm.path, norm.call][norm.counted] > 1:
        return f"{norm.path} calls batch_norm more than once"
    weight = recording.values[gemm.weights[0].value]
    if weight.kind != "parameter" or weight.name != f"{gemm.path}.weight":
        return f"the weight of {gemm.name} is not a parameter of its own"
    if not isinstance(modules[gemm.path], _GEMMS):
        return f"{gemm.path or 'the model'} is no layer of torch"
    if gemm.index not in recording.own_layers:
        return f"{gemm.name} adds another bias than its own"
    if (axis := _channel_axis(recording, gemm)) != 1:
        return f"the channels of {gemm.name} are on axis {axis} of its output, those of {norm.name} on axis 1"
    held = (recording.values[o.value] for o in (*gemm.weights, *gemm.others, *norm.others))
    used = ((value.name, len(value.consumers)) for value in held if value.fixed)
    return next((f"{name} is used {count} times" for name, count in used if count > calls), "")


def _channel_axis(recording: Recording, gemm: Site) -> int:
    """Where the output of a layer has its channels: before the axes that its kernel slides along."""
    output, weight = (recording.values[index] for index in (gemm.outputs[0], gemm.weights[0].value))
    return len(output.shape) - len(weight.shape) + 1


class WithBias(Substitute):
    """Adds the bias that folding made in the call of a layer whose own forward hands over none."""

    def call(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """Put the bias in its place."""
        if func in _CALLS and _argument(args, kwargs, 1, "weight") is self.module.weight:
            given = (_argument(args, kwargs, 0, "input"), self.module.weight, self.module.folded_bias)
            return func, (*given, *args[3:]), {k: v for k, v in kwargs.items() if k not in _PLACES}
        return func, args, kwargs


class WithoutBatchNorm(Substitute):
    """Hands on what a batch norm is given whose statistics went into the layer before it."""

    def call(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """Compute nothing in place of the batch norm."""
        if func is F.batch_norm and _argument(args, kwargs, 1, "running_mean") is self.module.running_mean:
            return _unchanged, (_argument(args, kwargs, 0, "input"),), {}
        return func, args, kwargs


def _unchanged(x: Tensor) -> Tensor:
    return x


class FoldedBatchNorm(nn.Identity):
    """What was a batch norm of torch, with its hooks and attributes; another layer has its statistics."""


def leave_out(norm: nn.Module) -> None:
    """Let a batch norm that was folded pass on what it is given.

    A subclass keeps its class and its forward, which may do more, an activation say, without the call of
    ``F.batch_norm``. What it could still look at, its statistics and affine, stays where it was, as constants
    that no state dict and no optimizer has.
    """
    for name in (*FOLDED, "num_batches_tracked"):
        held: dict[str, Any] = norm._parameters if name in norm._parameters else norm._buffers
        tensor = held.pop(name, None)
        norm.register_buffer(name, None if tensor is None else tensor.detach(), persistent=False)
    forward = norm.__dict__["forward"]
    assert isinstance(forward, ScopedForward)
    if type(norm) in _NORMS and forward.original is None:
        norm.__class__ = FoldedBatchNorm
        uninstall(norm)
    else:
        forward.substitute = WithoutBatchNorm


def is_folded(norm: nn.Module) -> bool:
    """Whether a module is what `leave_out` made of a batch norm."""
    substitute = getattr(norm.__dict__.get("forward"), "substitute", None)
    return isinstance(norm, FoldedBatchNorm) or substitute is WithoutBatchNorm


@torch.no_grad()
def fold_batch_norm(host: Any, norm: Any, *, axis: int) -> None:
    """Change ``host`` so that it computes what ``norm(host(x))`` computes in evaluation.

    ``weight * f`` and ``(bias - mean) * f + beta`` with ``f = gamma / sqrt(var + eps)``, computed in float64
    and rounded once. ``axis`` is that of the output channels in the weight.
    """
    factor, shift = affine(norm)
    host.weight.data = folded_weight(host, host.weight, factor, axis=axis)
    _change_bias(host, norm, factor, shift)


@torch.no_grad()
def folded_weight(host: nn.Module, weight: Tensor, factor: Tensor, *, axis: int) -> Tensor:
    """A weight of ``host`` times the factor of a batch norm.

    With groups, a transposed convolution has ``out_channels / groups`` entries along ``axis``, group by
    group.
    """
    weight = weight.detach()
    groups = groups_of(host, axis)
    leading = (groups, 1, -1) if axis == 1 else (1, -1)
    channels = weight.reshape(groups, -1, *weight.shape[1:]) if axis == 1 else weight[None]
    factor_of_weight = factor.reshape(*leading, *[1] * (channels.dim() - len(leading)))
    return _product(channels, factor_of_weight).reshape(weight.shape)


@torch.no_grad()
def folded_bias(bias: Tensor | None, factor: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias that a layer with this bias, or with none, has once a batch norm is folded into it."""
    own = torch.zeros_like(shift) if bias is None else bias.double()
    return (own * factor + shift).to(dtype)


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
    _change_bias(host, norm, *affine(norm))


def _change_bias(host: Any, norm: Any, factor: Tensor, shift: Tensor) -> None:
    trains = any(held is not None and held.requires_grad for held in (host.bias, norm.bias))
    new_bias = folded_bias(host.bias, factor, shift, host.weight.dtype)
    if host.bias is not None:
        host.bias.data = new_bias
        host.bias.requires_grad_(trains)
        return
    made = nn.Parameter(new_bias, requires_grad=trains)
    if _hands_over_its_bias(host):
        host.bias = made
    else:
        host.folded_bias = made
        host.__dict__["forward"].substitute = WithBias


def _hands_over_its_bias(host: nn.Module) -> bool:
    """Whether the forward of a layer without bias is torch's, which would take one; another may not look."""
    kind, forward = type(host), host.__dict__.get("forward")
    if isinstance(forward, ScopedForward) and forward.original is not None:
        return False
    own = getattr(kind, "_conv_forward", None) in (None, *(getattr(k, "_conv_forward", None) for k in _GEMMS))
    return own and kind.forward in _FORWARDS


def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """``(f, beta - mean * f)`` in float64."""
    factor = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return factor, shift
