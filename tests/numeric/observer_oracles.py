"""Slow, obvious references for the observers: they keep all data and loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np


def qparams(low: float, high: float, quant_min: int, quant_max: int, *, symmetric: bool) -> tuple[float, int]:
    """Scale and zero point of one range, in float64, the scale rounded to float32."""
    if symmetric:
        scale = max(abs(low), abs(high)) / ((quant_max - quant_min) / 2)
        return float(np.float32(max(scale, 2.0**-23))), 0
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (quant_max - quant_min), 2.0**-23)
    return float(np.float32(scale)), min(max(quant_min - round(low / scale), quant_min), quant_max)


def squared_error(x: np.ndarray, scale: float, zero_point: int, quant_min: int, quant_max: int) -> float:
    """The sum of (fake_quantize(x) - x)**2, in float64."""
    steps = np.clip(np.round(x.astype(np.float64) / scale) + zero_point, quant_min, quant_max) - zero_point
    return float(((steps * scale - x) ** 2).sum())


def range_error(x: np.ndarray, low: float, high: float, grid: tuple[int, int], *, symmetric: bool) -> float:
    scale, zero_point = qparams(low, high, *grid, symmetric=symmetric)
    return squared_error(x, scale, zero_point, *grid)


def least_error(x: np.ndarray, grid: tuple[int, int], *, symmetric: bool, candidates: int = 1000) -> float:
    """The best of ``candidates`` ranges, from the data's own down to a thousandth of it."""
    low, high = float(x.min()), float(x.max())
    ratios = [k / candidates for k in range(1, candidates + 1)]
    return min(range_error(x, low * r, high * r, grid, symmetric=symmetric) for r in ratios)


def percentile(x: np.ndarray, percent: float) -> float:
    """The smallest magnitude that at least ``percent`` % of all magnitudes do not exceed."""
    rank = math.ceil(Fraction(str(percent)) * x.size / 100)
    return float(np.sort(np.abs(x), axis=None)[max(rank, 1) - 1])


def moving_average(values: Sequence[float], constant: float) -> float:
    """First value sets, the others move by ``constant`` times the distance."""
    average = values[0]
    for value in values[1:]:
        average = float(np.float32(average + constant * (value - average)))
    return average


def kl_threshold(x: np.ndarray, bins: int, levels: int) -> float:
    """The widest threshold of least smoothed divergence."""
    smooth = kl_curve(x, bins, levels)
    best = max(place for place, value in enumerate(smooth) if value <= min(smooth) * (1 + 1e-12))
    return float(np.abs(x.astype(np.float64)).max()) * (best + levels) / bins


def kl_curve(x: np.ndarray, bins: int, levels: int) -> list[float]:
    """The smoothed divergence for thresholds of ``levels``, ..., ``bins`` bins: the textbook, bin by bin."""
    magnitudes = np.abs(x.astype(np.float64)).ravel()
    most = magnitudes.max()
    counts = [0.0] * bins
    for magnitude in magnitudes:
        counts[min(int(magnitude / most * bins), bins - 1)] += 1
    counts[0] = counts[1]
    divergences = [_divergence(counts, kept, levels) for kept in range(levels, bins + 1)]
    smooth = []
    for place in range(len(divergences)):
        window = divergences[max(0, place - 4) : place + 5]
        smooth.append(sum(window) / len(window))
    return smooth


def _divergence(counts: list[float], kept: int, levels: int) -> float:
    p = counts[:kept]
    p[-1] += sum(counts[kept:])
    q = [0.0] * kept
    groups: dict[int, list[int]] = {}
    for place in range(kept):
        groups.setdefault(place * levels // kept, []).append(place)
    for members in groups.values():
        filled = [place for place in members if counts[place] > 0]
        for place in filled:
            q[place] = sum(counts[place] for place in members) / len(filled)
    p_total, q_total = sum(p), sum(q)
    return sum(
        a / p_total * math.log((a / p_total) / max(b / q_total, 1e-10))
        for a, b in zip(p, q, strict=True)
        if a > 0
    )
