"""The arithmetic of quantization: choose qparams, quantize, dequantize, fake quantize.

The functions here say what the numbers are, one plain expression each. What training runs gives the same
bits from buffers of its own, see `quantcfg.numeric.ops`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quantcfg.numeric.exporting import is_exporting
from quantcfg.numeric.host import Values, is_on_host, range_of

# The smallest scale: the epsilon of float32. Far above the subnormals, so 1 / scale is finite in float16 too.
EPS = 2.0**-23

QSCHEMES: dict[str, torch.qscheme] = {
    "per_tensor_symmetric": torch.per_tensor_symmetric,
    "per_channel_symmetric": torch.per_channel_symmetric,
    "per_tensor_affine": torch.per_tensor_affine,
    "per_channel_affine": torch.per_channel_affine,
}


class QParams(NamedTuple):
    """How real values map onto the integer grid: ``real = (integer - zero_point) * scale``.

    Shapes:
        scale: float32, ``(1,)`` per tensor and ``(C,)`` per channel, in real units per integer step.
        zero_point: int32, of the shape of ``scale``.
    """

    scale: Tensor
    zero_point: Tensor


def as_qscheme(qscheme: str | torch.qscheme) -> torch.qscheme:
    """The qscheme of that name, with or without ``torch.``; one of torch's own is returned as it is.

    Raises:
        ValueError: it is none of the four in `QSCHEMES`.
    """
    found = QSCHEMES.get(str(qscheme).removeprefix("torch."))
    if found is None:
        raise ValueError(f"qscheme must be one of {', '.join(QSCHEMES)} (got {str(qscheme)!r})")
    return found


def is_per_channel(qscheme: torch.qscheme) -> bool:
    """Whether each channel has qparams of its own."""
    return qscheme in (torch.per_channel_symmetric, torch.per_channel_affine)


def is_symmetric(qscheme: torch.qscheme) -> bool:
    """Whether the zero point is 0."""
    return qscheme in (torch.per_tensor_symmetric, torch.per_channel_symmetric)


def choose_qparams(
    min_val: Tensor, max_val: Tensor, *, quant_min: int, quant_max: int, symmetric: bool
) -> QParams:
    """Map an observed range onto the integer grid.

        symmetric  scale = max(|min|, |max|) / ((quant_max - quant_min) / 2),  zero_point = 0
        affine     scale = (max - min) / (quant_max - quant_min),  zero_point = quant_min - round(min / scale)

    An affine range is first widened to contain 0, so that real 0 is exact; the zero point is clamped to the
    grid. A scale is at least `EPS`. Computed in float64, stored in float32; the zero point comes from the
    quotient before the scale is stored, so a range [-a, a] gives the half-way case and not its neighbour.

    Shapes:
        min_val, max_val: ``()`` or ``(1,)`` per tensor, ``(C,)`` per channel, finite, ``min_val <= max_val``
        (`Observer` sees to it: checking here would wait for the device at every training step). The range
        of nothing, +inf to -inf, gives `EPS`.

    Reference:
        Jacob et al. 2018, arXiv 1712.05877, section 2.1, equation 1.
    """
    if is_on_host(min_val, max_val):
        found = choose_on_host(*range_of(min_val, max_val), quant_min, quant_max, symmetric=symmetric)
        scales, zero_points = map(np.atleast_1d, found)
        return QParams(
            torch.from_numpy(scales.astype(np.float32)), torch.from_numpy(zero_points.astype(np.int32))
        )
    levels = quant_max - quant_min
    if symmetric:
        bound = torch.maximum(-min_val, max_val).detach().double().reshape(-1)
        scale = bound.div_(levels / 2).clamp_(min=EPS).float()
        return QParams(scale, torch.zeros_like(scale, dtype=torch.int32))
    low, high = min_val.detach().double().reshape(-1), max_val.detach().double().reshape(-1)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    span = high - low
    # One rounding: low * levels is exact in float64, so an exact tie is seen as one.
    steps = torch.where(span / levels > EPS, low * levels / span, low / EPS)
    zero_point = (quant_min - steps.round()).clamp(quant_min, quant_max)
    return QParams((span / levels).clamp(min=EPS).float(), zero_point.int())


def choose_on_host(
    low: Values, high: Values, quant_min: int, quant_max: int, *, symmetric: bool
) -> tuple[Values, Values]:
    """The scale and the zero point of `choose_qparams`, before they are stored."""
    if isinstance(low, float) and isinstance(high, float):
        return _choose_one(low, high, quant_min, quant_max, symmetric=symmetric)
    levels = quant_max - quant_min
    if symmetric:
        scale = np.maximum(-low, high) / (levels / 2)
        zero_point = np.zeros_like(scale)
    else:
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        scale = (high - low) / levels
        with np.errstate(invalid="ignore"):  # 0 / 0 in a channel of zeros
            steps = np.where(scale > EPS, low * levels / (high - low), low / EPS)
        zero_point = np.minimum(np.maximum(quant_min - np.rint(steps), quant_min), quant_max)
    return np.maximum(scale, EPS), zero_point


def _choose_one(
    low: float, high: float, quant_min: int, quant_max: int, *, symmetric: bool
) -> tuple[float, float]:
    """The same of one range, without numpy, which takes ten times as long for a single value."""
    levels = quant_max - quant_min
    if symmetric:
        return max(max(-low, high) / (levels / 2), EPS), 0.0
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / levels
    steps = low * levels / (high - low) if scale > EPS else low / EPS
    return max(scale, EPS), float(min(max(quant_min - round(steps), quant_min), quant_max))


def symmetric_range(scale: Tensor, *, quant_min: int, quant_max: int) -> tuple[Tensor, Tensor]:
    """The range (-a, a) that `choose_qparams` maps to this ``scale``, of which it has the shape and dtype."""
    bound = (scale.double() * ((quant_max - quant_min) / 2)).to(scale.dtype)
    return -bound, bound


def _least() -> float:
    """`EPS`; with ``dynamic=True`` a compiler takes a number of a module for one that may change."""
    return torch.finfo(torch.float32).eps


def effective_scale(scale: Tensor) -> Tensor:
    """The scale that a learned parameter stands for: its magnitude, at least `EPS`.

    Positive whatever an optimizer does to the parameter, whose gradient follows the sign; below `EPS` it
    passes straight through, or a scale that fell there could never grow again.
    """
    return scale.abs().clamp(min=_least())


def effective_alpha(alpha: Tensor, *, quant_min: int, quant_max: int) -> Tensor:
    """The clipping point that a learned parameter stands for: its magnitude, at least that of `EPS`."""
    return alpha.abs().clamp(min=_least() * (quant_max - quant_min) / 2)


def along(qparam: Tensor, x: Tensor, ch_axis: int) -> Tensor:
    """``qparam`` in a shape that broadcasts over ``x``: ``(C, 1, ..., 1)`` from ``ch_axis`` on."""
    if qparam.numel() == 1 or ch_axis < 0:
        return qparam
    return qparam.reshape(-1, *[1] * (x.dim() - ch_axis - 1))


def in_memory(qparam: Tensor) -> Tensor:
    """``qparam``, which a compiler is made to compute once and write down, by asking for its stride.

    It would repeat all of the arithmetic that leads there, an observer's with divisions in float64, for every
    vector of the tensor to be quantized: 5.4 copies of it for forward and backward, this 3.4. For qparams
    alone: of a slice of what it has not written down, torch 2.13's compiler then reads other memory.
    """
    if torch.compiler.is_compiling() and not is_exporting():
        return qparam.as_strided(qparam.shape, qparam.stride())
    return qparam


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that ``x`` is quantized in: float32 for the half precisions, else its own."""
    return torch.promote_types(x.dtype, torch.float32)


def quantize(x: Tensor, qparams: QParams, *, quant_min: int, quant_max: int, ch_axis: int = -1) -> Tensor:
    """The integers of ``x``, int32.

        clamp(round_half_even(x / scale) + zero_point, quant_min, quant_max)

    The zero point is added after the rounding. +-inf lands on the ends of the grid. NaN has no integer: the
    cast gives what the platform gives; `fake_quantize` keeps it NaN.

    Reference:
        ONNX, operator QuantizeLinear, opset 21.
    """
    return _to_grid(x, qparams, quant_min, quant_max, ch_axis).int()


def dequantize(integers: Tensor, qparams: QParams, *, ch_axis: int = -1) -> Tensor:
    """The real values of integers, float32: ``(integers - zero_point) * scale``.

    Reference:
        ONNX, operator DequantizeLinear, opset 21.
    """
    scale = along(qparams.scale, integers, ch_axis)
    return (integers - along(qparams.zero_point, integers, ch_axis)).to(scale.dtype) * scale


def fake_quantize(
    x: Tensor, qparams: QParams, *, quant_min: int, quant_max: int, ch_axis: int = -1
) -> Tensor:
    """Quantize and dequantize, in the dtype of ``x``; half precisions are computed in float32 and cast once.

    Real zeros come out as +0.0, as from integers. NaN stays NaN.
    """
    grid = _to_grid(x, qparams, quant_min, quant_max, ch_axis)
    zero_point = along(qparams.zero_point, x, ch_axis)
    return ((grid - zero_point) * along(qparams.scale, x, ch_axis)).to(x.dtype)


def _to_grid(x: Tensor, qparams: QParams, quant_min: int, quant_max: int, ch_axis: int) -> Tensor:
    steps = (x.to(compute_dtype(x)) / along(qparams.scale, x, ch_axis)).round()
    return (steps + along(qparams.zero_point, x, ch_axis)).clamp(quant_min, quant_max)
