"""Ranges from distributions: what percentile, mse and mix ask of a histogram.

Everything here takes all channels and many candidates at once, and works in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from quantcfg.numeric.distributions import Bins, Distribution, Points, take_rows
from quantcfg.numeric.qparams import QParams, choose_qparams

Range = tuple[Tensor, Tensor]

Errors = Callable[[Tensor], Tensor]
ErrorsOf = Callable[[Distribution, Tensor], Tensor]

# The range is not made narrower than this part of the data's: 2**-10 reaches outliers of a thousand times.
_LEAST_RATIO = 2.0**-10
# Stands in for 0 where a quotient is not used.
_TINY = torch.finfo(torch.float64).tiny
# Channels searched at a time: each may have a thousand candidates.
_ROWS = 4096
# Values held by one temporary of a search.
_CHUNK = 1 << 18
# Of the first look at all values of a channel so many ratios get a closer one, in so many places around each;
# with few values the error is ragged, and more do: `_RAGGED` divided by the number of values.
_NEAR, _AROUND, _RAGGED = 24, 5, 1 << 14
# The same for bins, with fewer than `_MANY` values and with more. With more, half of `_FINE` or more bins say
# as much as all of them, for what is unknown of each value averages out.
_NEAR_FEW, _NEAR_MANY, _AROUND_BINS, _MANY, _FINE = 8, 5, 7, 1 << 16, 1 << 13


@dataclass(frozen=True, slots=True)
class Grid:
    """The integers that a range is mapped onto, and how."""

    quant_min: int
    quant_max: int
    symmetric: bool

    def qparams(self, low: Tensor, high: Tensor) -> QParams:
        """The qparams of ranges of any shape."""
        scale, zero_point = choose_qparams(
            low, high, quant_min=self.quant_min, quant_max=self.quant_max, symmetric=self.symmetric
        )
        return QParams(scale.view_as(low), zero_point.view_as(low))


def rank_of(percentile: float, total: int) -> int:
    """The rank, from 1, of the smallest of ``total`` values that ``percentile`` % do not exceed.

    The percentage is taken as it is written, so 99.99 % of 10,000 values is 9,999 and not one more.
    """
    exact = Fraction(str(percentile)) * total / 100
    return max(1, -(-exact.numerator // exact.denominator))


def magnitude_at(magnitudes: Distribution, rank: int, total: int) -> Tensor:
    """The magnitude of that rank among ``total``, float64 ``(C,)``: the value itself, or its bin's middle."""
    if isinstance(magnitudes, Points):
        return _value_at(magnitudes, total - rank + 1)
    reached = magnitudes.counts.cumsum(1)
    wanted = torch.full_like(reached[:, :1], rank)
    at = torch.searchsorted(reached, wanted).clamp(max=reached.shape[1] - 1)
    middle = (magnitudes.edges.gather(1, at) + magnitudes.edges.gather(1, at + 1)) / 2
    return torch.where(at > 0, middle, 0.0)[:, 0]


def _value_at(points: Points, place: int) -> Tensor:
    """The value at that place from the greatest down."""
    # As many entries are enough: each stands for one value or more.
    values, order = points.values.topk(min(place, points.values.shape[1]), dim=1)
    reached = points.counts.gather(1, order).cumsum(1)
    at = torch.searchsorted(reached, torch.full_like(reached[:, :1], place)).clamp(max=reached.shape[1] - 1)
    return values.gather(1, at)[:, 0]


def cut(ends: Range, threshold: Tensor) -> Range:
    """The range ``ends``, no further from 0 than ``threshold``; float32 like ``ends``."""
    threshold = threshold.float()
    return ends[0].clamp(-threshold, threshold), ends[1].clamp(-threshold, threshold)


def percentile_range(magnitudes: Distribution, ends: Range, percentile: float, total: int) -> Range:
    """``ends`` cut at that percentile of the magnitudes; 100 is ``ends`` itself."""
    rank = rank_of(percentile, total)
    return ends if rank >= total else cut(ends, magnitude_at(magnitudes, rank, total))


def squared_error(distribution: Distribution, qparams: QParams, grid: Grid) -> Tensor:
    """The sum over all values of (fake_quantize(x) - x)**2 for K candidates, float64 ``(C, K)``.

    Exact for `Points`. For `Bins` it is the integral over each bin with its values spread evenly:

        scale**3 * sum over edges of G(edge / scale) * (density left of it - density right of it)
        G(u) = k / 12 + (u - k)**3 / 3,   k = round(u) clamped to the grid

    G being the integral of the squared rounding error from 0 to u.

    Shapes:
        qparams: ``(C, K)``.
    """
    weights: Tensor | None
    if isinstance(distribution, Points):
        # float32, as the fake quantization itself.
        places, weights = distribution.values.float(), _weights(distribution.counts)
        integrand, power = _square, 2
    else:
        places, weights = _edge_weights(distribution)
        integrand, power = _integral, 3
    scale = qparams.scale.to(places.dtype)
    zero_point = None if grid.symmetric else qparams.zero_point.to(places.dtype)
    sums = torch.empty_like(scale)
    for rows, columns in _chunks(scale.shape, places.shape[1]):
        steps = places[rows, None, :] / scale[rows, columns, None]
        level = _clamped(steps.round(), None if zero_point is None else zero_point[rows, columns, None], grid)
        errors = integrand(steps, level)
        sums[rows, columns] = (errors if weights is None else errors.mul_(weights[rows, None, :])).sum(2)
    return sums.double() * scale.double() ** power


def _weights(counts: Tensor) -> Tensor | None:
    """``counts`` as factors; None where every value counts once."""
    return None if counts.stride() == (0, 0) else counts.float()


def _clamped(level: Tensor, zero_point: Tensor | None, grid: Grid) -> Tensor:
    if zero_point is None:
        return level.clamp_(grid.quant_min, grid.quant_max)
    return level.clamp_(grid.quant_min - zero_point, grid.quant_max - zero_point)


def _chunks(shape: torch.Size, width: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of a ``(C, K)`` search over ``width`` values each that stay in the cache."""
    num_rows = max(1, min(shape[0], _CHUNK // width))
    num_columns = max(1, _CHUNK // (width * num_rows))
    for row in range(0, shape[0], num_rows):
        for column in range(0, shape[1], num_columns):
            yield slice(row, row + num_rows), slice(column, column + num_columns)


def _square(steps: Tensor, level: Tensor) -> Tensor:
    return steps.sub_(level).square_()


def _integral(steps: Tensor, level: Tensor) -> Tensor:
    """12 G of `squared_error`."""
    rest = steps.sub_(level)
    return level.addcmul_(rest.square(), rest, value=4.0)


def _edge_weights(bins: Bins) -> tuple[Tensor, Tensor]:
    """The edges, and the density left of each less the density right of it, by 12."""
    width = bins.edges.diff(dim=1)
    density = torch.where(width > 0, bins.counts / width.clamp(min=_TINY), 0.0)
    return bins.edges, torch.nn.functional.pad(density, (1, 1)).diff(dim=1) / -12


def mse_range(distribution: Distribution, ends: Range, grid: Grid, *, count: int) -> Range:
    """``ends`` times the ratio in (0, 1] that gives the least squared error, for each channel by itself.

    The first look is at 1, 0.99, ..., 0.06, and below that at ever smaller ratios; what it finds best is
    then looked at more and more closely. ``count`` is the number of values per channel.
    """
    parts = []
    for first in range(0, ends[0].numel(), _ROWS):
        rows = slice(first, first + _ROWS)
        parts.append(_mse_ratio(take_rows(distribution, rows), (ends[0][rows], ends[1][rows]), grid, count))
    ratio = torch.cat(parts)[:, 0]
    return (ends[0].double() * ratio).float(), (ends[1].double() * ratio).float()


def _mse_ratio(distribution: Distribution, ends: Range, grid: Grid, count: int) -> Tensor:
    def errors(values: Distribution, ratios: Tensor) -> Tensor:
        low, high = ((end.double()[:, None] * ratios).float() for end in ends)
        return squared_error(values, grid.qparams(low, high), grid)

    if isinstance(distribution, Points):
        return _search_points(partial(errors, distribution), ends[0], count)
    if count < _MANY:
        return _search_bins(distribution, errors, ends[0], near=_NEAR_FEW, keep=3)
    is_fine = distribution.counts.shape[1] >= _FINE
    return _search_bins(
        _thinned(distribution, 2) if is_fine else distribution, errors, ends[0], near=_NEAR_MANY, keep=2
    )


def best_range(distribution: Distribution, ranges: Sequence[Range], grid: Grid) -> Range:
    """The one of ``ranges`` with the least squared error, per channel; the first of equals."""
    low, high = (torch.stack(bounds, 1) for bounds in zip(*ranges, strict=True))
    best = squared_error(distribution, grid.qparams(low, high), grid).argmin(1, keepdim=True)
    return low.gather(1, best)[:, 0], high.gather(1, best)[:, 0]


def _coarse(like: Tensor) -> tuple[Tensor, Tensor]:
    """The ratios of the first look, descending, and how far the next one is; both ``(C, K)``."""
    rest = math.ceil(math.log(_LEAST_RATIO / 0.06, 0.8))
    # Made where they are used: a list of numbers would have to wait for the device.
    linear, powers = (torch.arange(count, dtype=torch.float64, device=like.device) for count in (95, rest))
    coarse = torch.cat((1 - 0.01 * linear, 0.06 * torch.exp2((powers + 1) * math.log2(0.8))))
    coarse = coarse.repeat(like.numel(), 1)
    return coarse, -torch.nn.functional.pad(coarse, (1, 0), mode="replicate").diff(dim=1).roll(-1, 1)


def _search_bins(bins: Bins, errors: ErrorsOf, like: Tensor, *, near: int, keep: int) -> Tensor:
    """The error is smooth but for what few values add: a first look at fewer bins, then ever closer ones."""
    ratios, gap = _coarse(like)
    best = errors(_thinned(bins, 4), ratios).topk(near, largest=False).indices
    closely = partial(errors, bins)
    ratios, gap = ratios.gather(1, best), gap.gather(1, best) / 2
    ratios, gap = _zoom(closely, ratios, gap, keep=keep, around=_AROUND_BINS)
    return _zoom(closely, ratios, gap / 2, keep=1, around=9)[0]


def _thinned(bins: Bins, every: int) -> Bins:
    """One edge of ``every`` so many, and those of the least and the greatest value."""
    last = bins.counts.shape[1]
    places = torch.arange(last + 1, device=bins.counts.device)
    kept = torch.cat((places[:1], places[1 : last - 1 : every], places[last - 1 :]))
    running = torch.nn.functional.pad(bins.counts.cumsum(1), (1, 0))
    return Bins(bins.edges.index_select(1, kept), running.index_select(1, kept).diff(dim=1))


def _search_points(errors: Errors, like: Tensor, count: int) -> Tensor:
    """The error is ragged, the more the fewer values there are: look closely wherever it is nearly least."""
    ratios, gap = _coarse(like)
    best = errors(ratios).topk(min(ratios.shape[1], max(_NEAR, _RAGGED // count)), largest=False).indices
    ratios, gap = _zoom(errors, ratios.gather(1, best), gap.gather(1, best) / 2, keep=8, around=_AROUND)
    return _zoom(errors, ratios, gap / 2, keep=1, around=11)[0]


def _zoom(errors: Errors, ratios: Tensor, gap: Tensor, *, keep: int, around: int) -> tuple[Tensor, Tensor]:
    """The ``keep`` best of ratios ``around`` each of ``ratios``, up to ``gap`` away, and their new gap."""
    offsets = torch.linspace(-1, 1, around, dtype=torch.float64, device=ratios.device)
    nearby = (ratios[:, :, None] + gap[:, :, None] * offsets).clamp(_LEAST_RATIO / 2, 1).flatten(1)
    gaps = (gap[:, :, None] * (2 / (around - 1))).expand(-1, -1, around).flatten(1)
    best = errors(nearby).topk(min(keep, nearby.shape[1]), largest=False).indices
    return nearby.gather(1, best), gaps.gather(1, best)
