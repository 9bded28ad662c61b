"""Fake quantization with gradients: the formula of `quantcfg.numeric.qparams`, from buffers of its own.

Each operation is one `torch.autograd.Function`: the forward allocates what it returns and works in place on
it; the backward is written out, since differentiating the chain op by op would keep every link of it. It is
linear in its gradient, and differentiated in turn as it stands: rounding has the derivative 1 and none after.

NaN comes out as NaN, with a gradient that is dy or 0, and +-inf as the end of the grid with no gradient.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantcfg.numeric import surrogates
from quantcfg.numeric.backward import (
    hand_written,
    in_backward,
    is_differentiated,
    learned_step,
    remove,
    straight_through,
    sum_to,
    where_zero,
)
from quantcfg.numeric.exporting import is_exporting
from quantcfg.numeric.host import is_on_host
from quantcfg.numeric.parts import parts
from quantcfg.numeric.qparams import along, effective_alpha, effective_scale, in_memory


class _Options(NamedTuple):
    quant_min: int
    quant_max: int
    ch_axis: int = -1
    grad_scaling: bool = False
    inside: bool = False


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    *,
    quant_min: int,
    quant_max: int,
    inside: bool = False,
) -> Tensor:
    """Fake quantize with the straight-through gradient; ``scale`` gets none.

        dx = dy where quant_min <= round(x / scale) + zero_point <= quant_max, else 0

    Keeps one byte per element for backward; nothing for a leaf, a weight say, which the graph holds anyway,
    and nothing where the caller knows that all of ``x`` is ``inside`` the grid.

    Shapes:
        x: any. scale, zero_point: broadcast over ``x`` (see `along`); a zero point of None is 0.

    Reference:
        Bengio et al. 2013, arXiv 1308.3432, section 4.
    """
    options = _Options(quant_min, quant_max, inside=inside)
    function = _StraightThroughLeaf if _is_held(x) else _Inside if inside else _StraightThrough
    return _run(function, x, scale, zero_point, options)


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
    options = _Options(quant_min, quant_max, ch_axis, grad_scaling)
    return _run(_LearnedStep, x, scale, zero_point, options)


def pact_fake_quantize(
    x: Tensor,
    alpha: Tensor,
    *,
    quant_min: int,
    quant_max: int,
    ch_axis: int = -1,
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


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, options: _Options) -> Tensor:
        if not _needs_backward(ctx):
            return _on_grid(x, scale, zero_point, options)
        result, clipped = torch.empty_like(x), torch.empty_like(x, dtype=torch.int8)
        for part in parts(x, scale, zero_point, result, clipped):
            _quantize_and_flag(part, options)
        ctx.save_for_backward(clipped)
        return result

    @staticmethod
    @hand_written
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (clipped,) = ctx.saved_tensors
        if is_differentiated():
            return surrogates.passed(grad, clipped == 0), None, None, None
        grad_x = torch.empty_like(grad)
        for part in parts(clipped, grad, grad_x):
            where_zero(*part)
        return grad_x, None, None, None

    @staticmethod
    def transformed(x: Tensor, scale: Tensor, zero_point: Tensor | None, options: _Options) -> Tensor:
        steps = _steps(x.detach(), scale, zero_point)
        surrogate = surrogates.straight_through(x, steps, options[:2])
        value = _to_real(steps.clamp(*options[:2]), scale, zero_point, x.dtype)
        return surrogates.with_gradient_of(surrogate, value)


class _Inside(_StraightThrough):
    """The same where nothing is clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, options: _Options) -> Tensor:
        # One flag for all: activation checkpointing compares what is kept with what it finds, when it runs
        # this again for a backward, where nothing is observed and the flags are written.
        ctx.save_for_backward(torch.zeros((), dtype=torch.int8, device=x.device).expand_as(x))
        return _on_grid(x, scale, zero_point, options)

    @staticmethod
    @hand_written
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG004
        return grad, None, None, None


class _StraightThroughLeaf(_StraightThrough):
    """The same from the leaf itself: fewer operations than with flags, and no memory for them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, options: _Options) -> Tensor:
        # Copies of the qparams: the next batch may write them again before backward.
        ctx.save_for_backward(x, scale.clone(), None if zero_point is None else zero_point.clone())
        ctx.options = options
        return _on_grid(x, scale, zero_point, options)

    @staticmethod
    @hand_written
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        if is_differentiated():
            steps = _steps(x.detach(), scale, zero_point)
            return surrogates.passed(grad, surrogates.inside(steps, ctx.options[:2])), None, None, None
        grad_x = torch.empty_like(grad, dtype=torch.promote_types(grad.dtype, scale.dtype))
        for part in parts(x, in_backward(scale, grad), zero_point, grad, grad_x, temporaries=False):
            straight_through(part, ctx.options[:2])
        return grad_x.to(grad.dtype), None, None, None


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, options: _Options) -> Tensor:
        step = in_memory(along(effective_scale(scale), x, options.ch_axis))
        zero_point = None if zero_point is None else along(zero_point, x, options.ch_axis)
        # The signed step and not the parameter: that may be written again before backward.
        ctx.save_for_backward(x, step.copysign(along(scale, x, options.ch_axis)), zero_point)
        ctx.options, ctx.shape = options, scale.shape
        return _on_grid(x, step, zero_point, options)

    @staticmethod
    @hand_written
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, signed_step, zero_point = ctx.saved_tensors
        if is_differentiated():
            return *_learned_step_gradients(grad, ctx), None, None
        wide = torch.promote_types(grad.dtype, signed_step.dtype)
        grad_x = torch.empty_like(grad, dtype=wide) if ctx.needs_input_grad[0] else None
        grad_step = torch.zeros_like(signed_step) if ctx.needs_input_grad[1] else None
        for part in parts(x, in_memory(signed_step.abs()), zero_point, grad, grad_x, grad_step):
            learned_step(part, ctx.options[:2])
        if grad_step is not None:
            grad_step = grad_step * signed_step.sign() * _grad_scale(x, signed_step, ctx.options)
            grad_step = grad_step.reshape(ctx.shape)
        return None if grad_x is None else grad_x.to(grad.dtype), grad_step, None, None

    @staticmethod
    def transformed(x: Tensor, scale: Tensor, zero_point: Tensor | None, options: _Options) -> Tensor:
        step = along(effective_scale(scale.detach()), x, options.ch_axis)
        zero_point = None if zero_point is None else along(zero_point, x, options.ch_axis)
        steps = _steps(x.detach(), step, zero_point)
        ends = steps.clamp(*options[:2])
        offset = 0 if zero_point is None else zero_point
        # The magnitude and not the effective scale, whose gradient would end below its least value.
        learned = along(scale.abs(), x, options.ch_axis) * _grad_scale(x, step, options)
        surrogate = surrogates.learned_step(x, steps - offset, x.detach() / step, learned, ends - offset)
        value = _to_real(ends, step, zero_point, x.dtype)
        return surrogates.with_gradient_of(surrogate, value)


class _LearnedClip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, options: _Options) -> Tensor:
        quant_min, quant_max, ch_axis = options[:3]
        bound = along(effective_alpha(alpha, quant_min=quant_min, quant_max=quant_max), x, ch_axis)
        scale = bound / ((quant_max - quant_min) / 2)
        if not _needs_backward(ctx):
            return _on_grid(x, scale, None, options)
        result, side = torch.empty_like(x), torch.empty_like(x, dtype=torch.int8)
        for part in parts(x, scale, bound, result, side):
            _quantize_and_tell_sides(part, options)
        ctx.save_for_backward(side, bound.copysign(along(alpha, x, ch_axis)))
        ctx.shape = alpha.shape
        return result

    @staticmethod
    @hand_written
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        side, signed_bound = ctx.saved_tensors
        if is_differentiated():
            grad_alpha = (grad * (side * signed_bound.sign())).sum_to_size(signed_bound.shape)
            return surrogates.passed(grad, side == 0), grad_alpha.reshape(ctx.shape), None, None
        grad_x = torch.empty_like(grad) if ctx.needs_input_grad[0] else None
        grad_alpha = torch.zeros_like(signed_bound) if ctx.needs_input_grad[1] else None
        for side_part, grad_part, grad_x_part, sum_part in parts(side, grad, grad_x, grad_alpha):
            if sum_part is not None:
                sum_part.add_(sum_to(sum_part, side_part.to(sum_part.dtype).mul_(grad_part)))
            if grad_x_part is not None:
                where_zero(side_part, grad_part, grad_x_part)
        if grad_alpha is not None:
            grad_alpha = (grad_alpha * signed_bound.sign()).reshape(ctx.shape)
        return grad_x, grad_alpha, None, None

    @staticmethod
    def transformed(x: Tensor, alpha: Tensor, options: _Options) -> Tensor:
        quant_min, quant_max, ch_axis = options[:3]
        ends = effective_alpha(alpha.detach(), quant_min=quant_min, quant_max=quant_max)
        bound = along(ends, x, ch_axis)
        scale = bound / ((quant_max - quant_min) / 2)
        value = _to_real(_steps(x.detach(), scale, None).clamp(*options[:2]), scale, None, x.dtype)
        learned = along(alpha.abs(), x, ch_axis)
        return surrogates.with_gradient_of(surrogates.learned_clip(x, bound, learned), value)


def _needs_backward(ctx: Any) -> bool:
    return any(ctx.needs_input_grad)


def _is_held(x: Tensor) -> bool:
    """Whether the graph keeps ``x`` until backward, for its gradient: its values can be used again there."""
    return x.is_leaf and x.requires_grad and torch.is_grad_enabled()


def _on_grid(x: Tensor, scale: Tensor, zero_point: Tensor | None, options: _Options) -> Tensor:
    if torch.compiler.is_compiling():
        return _to_real(_clamp_(_steps(x, scale, zero_point), options), scale, zero_point, x.dtype)
    result = torch.empty_like(x)
    for part in parts(x, scale, zero_point, result, temporaries=False):
        _quantize(part, options)
    return result


def _quantize(part: tuple[Any, ...], options: _Options) -> None:
    x, scale, zero_point, result = part
    steps = _rounded(x, scale, zero_point, _reusable(result, torch.promote_types(x.dtype, scale.dtype)))
    if not options.inside:
        _clamp_(steps, options)
    _store(_scale_(steps, scale, zero_point), result)


def _rounded(x: Tensor, scale: Tensor, zero_point: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Where ``x`` falls on the endless grid; the -0.0 that there may be is left to `_scale_`."""
    steps = torch.div(x, scale, out=out).round_()
    return steps if zero_point is None else steps.add_(zero_point)


def _scale_(steps: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """The real values of ``steps``, in place; a -0.0 of the rounding, if there is one, becomes +0.0."""
    if zero_point is not None:
        return steps.sub_(zero_point).mul_(scale)
    # Both in one pass, 0 + scale * steps, which rounds once.
    if scale.numel() == 1 and is_on_host(scale):
        return torch.add(_ZERO, steps, alpha=scale.item(), out=steps)
    if scale.numel() == 1 or torch.compiler.is_compiling():
        return steps.add_(0.0).mul_(scale)
    # A single 0.0 beside a scale per row would not be vectorised, a row of them is.
    return torch.addcmul(torch.zeros_like(steps[:1]), steps, scale, out=steps)


_ZERO = torch.zeros((), device="cpu")


def _quantize_and_flag(part: tuple[Any, ...], options: _Options) -> None:
    x, scale, zero_point, result, clipped = part
    steps = _rounded(x, scale, zero_point)
    inside = torch.clamp(steps, options.quant_min, options.quant_max, out=_reusable(result, steps.dtype))
    clipped.copy_(steps.sub_(inside).clamp_(-1, 1))
    _store(_scale_(inside, scale, zero_point), result)


def _quantize_and_tell_sides(part: tuple[Any, ...], options: _Options) -> None:
    x, scale, bound, result, side = part
    # The quotient reaches +-1 exactly where |x| reaches the bound, and the cast truncates.
    quotient = x / bound
    side.copy_(quotient.clamp_(-1, 1))
    _quantize((x, scale, None, result), options)


def _reusable(result: Tensor, dtype: torch.dtype) -> Tensor | None:
    """``result``, if ``dtype`` can be computed in it; the compiler takes no `out` that is not contiguous."""
    return result if result.dtype == dtype and not torch.compiler.is_compiling() else None


def _store(values: Tensor, result: Tensor) -> None:
    if values is not result:
        result.copy_(values)


def _learned_step_gradients(grad: Tensor, ctx: Any) -> tuple[Tensor, Tensor]:
    x, signed_step, zero_point = ctx.saved_tensors
    x, step = x.detach(), signed_step.abs()
    steps = _steps(x, step, zero_point)
    inside = surrogates.inside(steps, ctx.options[:2])
    slope = remove(_clamp_(steps, ctx.options), zero_point) - torch.where(inside, x / step, 0.0)
    slope *= signed_step.sign() * _grad_scale(x, signed_step, ctx.options)
    return surrogates.passed(grad, inside), (grad * slope).sum_to_size(step.shape).reshape(ctx.shape)


def _run(function: Any, x: Tensor, *arguments: object) -> Tensor:
    if is_exporting() or not torch.is_grad_enabled():
        # Or `needs_input_grad` says that there is a backward to prepare for. An exported graph is the forward
        # alone, and without what only a backward would use.
        x, arguments = x.detach(), tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    # The qparams have one dimension: a scalar would come out as a vector. As vectors, type promotion keeps
    # the arithmetic of half precisions in float32.
    vector = x.reshape(1) if x.dim() == 0 else x
    result: Tensor = (function.transformed if _is_transformed() else function.apply)(vector, *arguments)
    return result.reshape(()) if x.dim() == 0 else result


def _is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, which takes no hand-written backward as these are."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _steps(x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Where ``x`` falls on the endless grid, in a new buffer; adding 0.0 turns -0.0 into +0.0."""
    return (x / scale).round_().add_(0.0 if zero_point is None else zero_point)


def _clamp_(steps: Tensor, options: _Options) -> Tensor:
    return steps.clamp_(options.quant_min, options.quant_max)


def _to_real(steps: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    return remove(steps, zero_point).mul_(scale).to(dtype)


def _grad_scale(x: Tensor, scale: Tensor, options: _Options) -> float:
    if not options.grad_scaling:
        return 1.0
    num_shared = torch.sym_max(x.numel() // scale.numel(), 1)  # type: ignore[no-untyped-call]
    return 1.0 / math.sqrt(num_shared * max(options.quant_max, 1))
