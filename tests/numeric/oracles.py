"""Slow, obvious and independent references for the arithmetic: exact rationals and plain Python integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch

EPS = Fraction(1, 2**23)


def round_half_even(value: Fraction) -> int:
    """Fraction's own rounding is half to even and exact."""
    return round(value)


def quantize(x: float, scale: float, zero_point: int, quant_min: int, quant_max: int) -> int:
    """ONNX QuantizeLinear of one float32: the quotient is a float32, all else is exact."""
    if math.isinf(x):
        return quant_max if x > 0 else quant_min
    with np.errstate(over="ignore"):
        quotient = float(np.float32(x) / np.float32(scale))
    if math.isinf(quotient):
        return quant_max if quotient > 0 else quant_min
    return min(max(round_half_even(Fraction(quotient)) + zero_point, quant_min), quant_max)


def dequantize(integer: int, scale: float, zero_point: int) -> np.float32:
    """ONNX DequantizeLinear of one integer: an exact product, rounded once to float32."""
    exact = (integer - zero_point) * Fraction(float(np.float32(scale)))
    return np.float32(float(exact))  # at most 16 + 24 bits: exact in float64


def fake_quantize(x: float, scale: float, zero_point: int, quant_min: int, quant_max: int) -> np.float32:
    """The two one after the other; NaN stays NaN."""
    if math.isnan(x):
        return np.float32("nan")
    return dequantize(quantize(x, scale, zero_point, quant_min, quant_max), scale, zero_point)


def choose_qparams(
    min_val: float, max_val: float, quant_min: int, quant_max: int, symmetric: bool
) -> tuple[np.float32, int]:
    """Design section 6 in exact rationals."""
    low, high = Fraction(min_val), Fraction(max_val)
    levels = quant_max - quant_min
    if symmetric:
        return _float32(max(max(abs(low), abs(high)) / Fraction(levels, 2), EPS)), 0
    low, high = min(low, Fraction(0)), max(high, Fraction(0))
    scale = max((high - low) / levels, EPS)
    zero_point = quant_min - round_half_even(low / scale)
    return _float32(scale), min(max(zero_point, quant_min), quant_max)


def _float32(value: Fraction) -> np.float32:
    return np.float32(float(value))


def straight_through(x, scale, zero_point, bounds, *, at):
    """Fake quantize as gradients see it, float64: the rounding error is that of ``at`` (x, scale), held."""
    position = at[0] / at[1]
    error = np.round(position) - position
    return (np.clip(x / scale + error + zero_point, *bounds) - zero_point) * scale


def pact(x, alpha):
    """PACT as gradients see it, on both sides."""
    return np.clip(x, -alpha, alpha)


def central_differences(function, values, weights, step=1e-6):
    """d sum(weights * function(values)) / d values, one value after the other."""
    gradient = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        up, down = values.copy(), values.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (weights * (function(up) - function(down))).sum() / (2 * step)
    return gradient


def cast_once(values, dtype):
    """Float32 values in another precision, each rounded half to even on its own bits."""
    values = np.asarray(values, dtype=np.float32)
    if dtype == torch.bfloat16:
        bits = values.view(np.uint32).astype(np.uint64)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
        return torch.tensor(np.where(np.isnan(values), values, bits.astype(np.uint32).view(np.float32)))
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            return torch.tensor(values.astype(np.float16).astype(np.float32))
    return torch.tensor(values)
