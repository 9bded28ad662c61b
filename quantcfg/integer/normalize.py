"""Softmax and norms: integer sums per row; one quotient or root per row in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from quantcfg.integer.call import Call
from quantcfg.integer.pointwise import MAX_ENTRIES
from quantcfg.integer.values import Sum, Term

_UNIT = 2.0**30  # of the table of exponentials


def softmax(call: Call) -> Sum | None:
    """A quotient of exponentials, from a table of ``round_half_even(exp(-k * scale) * 2**30)``.

    Sums of them are exact; the quotient is rounded once, by the one rule.
    """
    term = call.term_at(0, "input")
    axis = call.get(1, "dim")
    if term is None or term.bounds is None or not term.per_tensor or axis is None:
        return None
    span = term.bounds[1] - term.bounds[0]
    if span >= MAX_ENTRIES:
        return None
    below = torch.arange(span + 1, dtype=torch.float64, device=term.steps.device)
    entries = (torch.exp(-below * term.scale) * _UNIT).round()
    steps = entries[(term.steps.amax(axis, keepdim=True) - term.steps).long()]
    return Sum((Term(steps, 1.0 / steps.sum(axis, keepdim=True).expand_as(steps)),))


def layer_norm(call: Call) -> Sum | None:
    """``layer_norm``, over the last axes."""
    term = call.term_at(0, "input")
    if term is None or not term.per_tensor:
        return None
    shape = call.get(1, "normalized_shape")
    axes = tuple(range(-len(shape), 0))
    centred, scale = _normalized(term, axes, float(call.get(4, "eps", 1e-5)))
    return _affine(centred, scale, call.get(2, "weight"), call.get(3, "bias"))


def group_norm(call: Call) -> Sum | None:
    """``group_norm``, over the channels of a group and what follows them."""
    term = call.term_at(0, "input")
    if term is None or not term.per_tensor:
        return None
    shape, groups = term.steps.shape, int(call.get(1, "num_groups"))
    grouped = Term(term.steps.reshape(shape[0], groups, -1), term.scale)
    centred, scale = _normalized(grouped, (-1,), float(call.get(4, "eps", 1e-5)))
    weight, bias = (_per_channel(call.get(i, name), shape) for i, name in ((2, "weight"), (3, "bias")))
    return _affine(centred.reshape(shape), scale.expand_as(centred).reshape(shape), weight, bias)


def _per_channel(parameter: Tensor | None, shape: torch.Size) -> Tensor | None:
    return None if parameter is None else parameter.reshape(-1, *[1] * (len(shape) - 2))


def _normalized(term: Term, axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """``n * q - sum(q)``, integers, and the scale that makes them the normalized values."""
    q = term.steps
    total = q.sum(axes, keepdim=True)
    count = q.numel() / max(total.numel(), 1)
    centred = q * count - total
    unit = term.scale / count
    variance = centred.square().sum(axes, keepdim=True) * unit.square() / count
    return centred, unit / (variance + eps).sqrt()


def _affine(steps: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None) -> Sum:
    scale = scale.expand_as(steps) if weight is None else scale * weight.double()
    return Sum((Term(steps, scale),), None if bias is None else bias.double())


def batch_norm(call: Call) -> Sum | None:
    """A batch norm in evaluation: one factor and one offset per channel, which folding would have merged."""
    exact = call.sum_at(0, "input")
    mean, variance = call.get(1, "running_mean"), call.get(2, "running_var")
    if exact is None or mean is None or variance is None or call.get(5, "training", False):
        return None
    if exact.low != -torch.inf or exact.high != torch.inf:
        return None
    shape = (-1, *[1] * (exact.terms[0].steps.dim() - 2))
    factor, shift = _folded(call, mean.double(), variance.double())
    factor, shift = factor.reshape(shape), shift.reshape(shape)
    offset = shift if exact.offset is None else exact.offset * factor + shift
    terms = tuple(Term(t.steps, t.scale * factor) for t in exact.terms)
    return Sum(terms, offset, has_bias=exact.has_bias)


def _folded(call: Call, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    factor = torch.rsqrt(variance + float(call.get(7, "eps", 1e-5)))
    weight, bias = call.get(3, "weight"), call.get(4, "bias")
    if weight is not None:
        factor = factor * weight.double()
    shift = -mean * factor
    return factor, shift if bias is None else shift + bias.double()
