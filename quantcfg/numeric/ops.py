"""Fake quantization with gradients: the formula of `quantcfg.numeric.qparams`, from buffers of its own.

Each operation is one `torch.autograd.Function`: the forward allocates what it returns and works in place on
it; the backward is written out, since differentiating the chain op by op would keep every link of it.

NaN comes out as NaN, and +-inf as the end of the grid with no gradient.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quantcfg.numeric.qparams import EPS, along

_hardtanh_backward = torch.ops.aten.hardtanh_backward


class _Options(NamedTuple):
    quant_min: int
    quant_max: int
    ch_axis: int = -1
    grad_scaling: bool = False


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, *, quant_min: int, quant_max: int
) -> Tensor:
    """Fake quantize with the straight-through gradient; ``scale`` gets none.

        dx = dy where quant_min <= round(x / scale) + zero_point <= quant_max, else 0

    Keeps one byte per element for backward.

    Shapes:
        x: any. scale, zero_point: broadcast over ``x`` (see `along`); a zero point of None is 0.

    Reference:
        Bengio et al. 2013, arXiv 1308.3432, section 4.
    """
    return _run(_StraightThrough, x, scale, zero_point, _Options(quant_min, quant_max))


def lsq_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    *,
    quant_min: int,
    quant_max: int,
    grad_scaling: bool,
    ch_axis: int = -1,
) -> Tensor:
    """Fake quantize with a learned step size, ``effective_scale(scale)``.

        dx     as in `fake_quantize`
        dscale = g * sum(dy * (round(x / scale) - x / scale))     where dx is dy
                 g * sum(dy * (quant_min or quant_max - zero_point))  where it is 0
        g      = 1 / sqrt(n * quant_max) with grad_scaling, else 1

    ``n`` counts the elements that share one scale: those of one channel when there are several. Keeps ``x``
    itself, and no copy, for backward.

    Shapes:
        x: any. scale, zero_point: ``(1,)`` or ``(C,)``, the size of ``x`` along ``ch_axis``.

    Reference:
        Esser et al. 2019, arXiv 1902.08153, sections 2.1 and 2.2.
    """
    return _run(_LearnedStep, x, scale, zero_point, _Options(quant_min, quant_max, ch_axis, grad_scaling))


def pact_fake_quantize(
    x: Tensor, alpha: Tensor, *, quant_min: int, quant_max: int, ch_axis: int = -1
) -> Tensor:
    """Fake quantize with a learned clipping point, on the symmetric grid whose ends are +-``alpha``.

        scale  = alpha / ((quant_max - quant_min) / 2)
        dx     = dy where |x| < alpha, else 0
        dalpha = sum(dy where x >= alpha) - sum(dy where x <= -alpha)

    The clipping is that of the grid itself. Keeps one byte per element for backward.

    Shapes:
        x: any. alpha: ``(1,)`` or ``(C,)``, the size of ``x`` along ``ch_axis``.

    Reference:
        Choi et al. 2018, arXiv 1805.06085, section 3, equations 1 to 3; both signs are ours.
    """
    return _run(_LearnedClip, x, alpha, _Options(quant_min, quant_max, ch_axis))


def effective_scale(scale: Tensor) -> Tensor:
    """The scale that a learned parameter stands for: its magnitude, at least `EPS`.

    Positive whatever an optimizer does to the parameter, whose gradient follows the sign; below `EPS` it
    passes straight through, or a scale that fell there could never grow again.
    """
    return scale.abs().clamp(min=EPS)


def effective_alpha(alpha: Tensor, *, quant_min: int, quant_max: int) -> Tensor:
    """The clipping point that a learned parameter stands for: its magnitude, at least that of `EPS`."""
    return alpha.abs().clamp(min=EPS * (quant_max - quant_min) / 2)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, options: _Options) -> Tensor:
        steps = _steps(x, scale, zero_point)
        if not ctx.needs_input_grad[0]:
            return _to_real(_clamp_(steps, options), scale, zero_point, x.dtype)
        inside = steps.clamp(options.quant_min, options.quant_max)
        ctx.save_for_backward(steps.sub_(inside).to(torch.bool))
        return _to_real(inside, scale, zero_point, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (clipped,) = ctx.saved_tensors
        return _zero_where(clipped, grad), None, None, None


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, options: _Options) -> Tensor:
        step = effective_scale(scale)
        zero_point = None if zero_point is None else along(zero_point, x, options.ch_axis)
        # The signed step and not the parameter: that may be written again before backward.
        ctx.save_for_backward(x, step.copysign(scale), zero_point)
        ctx.options = options
        step = along(step, x, options.ch_axis)
        return _to_real(_clamp_(_steps(x, step, zero_point), options), step, zero_point, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, signed_step, zero_point = ctx.saved_tensors
        position = x / along(signed_step.abs(), x, ctx.options.ch_axis)
        steps = position.round() if zero_point is None else position.round().add_(zero_point)
        wide = grad.to(steps.dtype)
        grad_x = grad_scale = None
        if ctx.needs_input_grad[0]:
            grad_x = _where_inside(wide, steps, ctx.options).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            position = _where_inside_(position, steps, ctx.options)
            slope = _remove(_clamp_(steps, ctx.options), zero_point).sub_(position)
            grad_scale = _sum_like(signed_step, slope.mul_(wide), ctx.options.ch_axis)
            grad_scale = grad_scale * signed_step.sign() * _grad_scale(x, signed_step, ctx.options)
        return grad_x, grad_scale, None, None


class _LearnedClip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, options: _Options) -> Tensor:
        quant_min, quant_max, ch_axis, _ = options
        bound = effective_alpha(alpha, quant_min=quant_min, quant_max=quant_max)
        if any(ctx.needs_input_grad):
            # x / bound reaches +-1 exactly where |x| reaches the bound; the cast to an integer truncates.
            side = (x / along(bound, x, ch_axis)).clamp_(-1, 1).to(torch.int8)
            ctx.save_for_backward(side, bound.copysign(alpha))
            ctx.ch_axis = ch_axis
        scale = along(bound / ((quant_max - quant_min) / 2), x, ch_axis)
        return _to_real(_clamp_(_steps(x, scale, None), options), scale, None, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        side, signed_bound = ctx.saved_tensors
        grad_x = _zero_where(side, grad) if ctx.needs_input_grad[0] else None
        grad_alpha = None
        if ctx.needs_input_grad[1]:
            slope = side.to(torch.promote_types(grad.dtype, torch.float32)).mul_(grad)
            grad_alpha = _sum_like(signed_bound, slope, ctx.ch_axis) * signed_bound.sign()
        return grad_x, grad_alpha, None


def _run(function: type[torch.autograd.Function], x: Tensor, *arguments: object) -> Tensor:
    # The qparams have one dimension: a scalar would come out as a vector. As vectors, type promotion keeps
    # the arithmetic of half precisions in float32.
    vector = x.reshape(1) if x.dim() == 0 else x
    result: Tensor = function.apply(vector, *arguments)  # type: ignore[no-untyped-call]
    return result.reshape(()) if x.dim() == 0 else result


def _steps(x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Where ``x`` falls on the endless grid, in a new buffer; adding 0.0 turns -0.0 into +0.0."""
    return (x / scale).round_().add_(0.0 if zero_point is None else zero_point)


def _clamp_(steps: Tensor, options: _Options) -> Tensor:
    return steps.clamp_(options.quant_min, options.quant_max)


def _to_real(steps: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    return _remove(steps, zero_point).mul_(scale).to(dtype)


def _remove(steps: Tensor, zero_point: Tensor | None) -> Tensor:
    return steps if zero_point is None else steps.sub_(zero_point)


def _where_inside(value: Tensor, steps: Tensor, options: _Options) -> Tensor:
    """``value`` where the integers ``steps`` lie on the grid, else 0: one vectorised pass and no mask."""
    inside: Tensor = _hardtanh_backward(value, steps, options.quant_min - 0.5, options.quant_max + 0.5)
    return inside


def _where_inside_(value: Tensor, steps: Tensor, options: _Options) -> Tensor:
    bounds = options.quant_min - 0.5, options.quant_max + 0.5
    inside: Tensor = _hardtanh_backward.grad_input(value, steps, *bounds, grad_input=value)
    return inside


def _zero_where(flags: Tensor, value: Tensor) -> Tensor:
    """``value`` where the one-byte ``flags`` are 0, else 0."""
    if torch.compiler.is_compiling() or not value.is_cpu:
        return torch.where(flags == 0, value, 0.0)
    # torch.where is not vectorised over bytes on a CPU: 2.4 copies of the tensor, this 1.7.
    wide = flags.view(torch.int8).to(value.dtype)
    kept: Tensor = _hardtanh_backward.grad_input(value, wide, -0.5, 0.5, grad_input=wide)
    return kept


def _sum_like(target: Tensor, values: Tensor, ch_axis: int) -> Tensor:
    """The sum of ``values`` over all that shares one element of ``target``, in its shape and dtype."""
    if target.numel() == 1:
        return values.sum().reshape(1).to(target.dtype)
    others = [axis for axis in range(values.dim()) if axis != ch_axis]
    return (values.sum(others) if others else values).to(target.dtype)


def _grad_scale(x: Tensor, scale: Tensor, options: _Options) -> float:
    if not options.grad_scaling:
        return 1.0
    num_shared = torch.sym_max(x.numel() // scale.numel(), 1)  # type: ignore[no-untyped-call]
    return 1.0 / math.sqrt(num_shared * max(options.quant_max, 1))
