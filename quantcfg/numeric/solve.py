"""Ranges from distributions: what percentile, mse, mix and kl ask of a histogram.

Everything here takes all channels and many candidates at once, and works in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from quantcfg.numeric.histogram import Bins, Distribution, Points
from quantcfg.numeric.qparams import QParams, choose_qparams

Range = tuple[Tensor, Tensor]

Errors = Callable[[Tensor], Tensor]

# The range is not made narrower than this part of the data's: 2**-10 reaches outliers of a thousand times.
_LEAST_RATIO = 2.0**-10
# Stands in for 0 where a quotient is not used.
_TINY = torch.finfo(torch.float64).tiny
# Channels searched at a time: each may have a thousand candidates.
_ROWS = 4096
# Values held by one temporary of a search.
_CHUNK = 1 << 17


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


def magnitude_at(magnitudes: Distribution, rank: int) -> Tensor:
    """The magnitude of that rank, float64 ``(C,)``: the value itself, or a point inside its bin."""
    reached = magnitudes.counts.cumsum(1)
    wanted = torch.full_like(reached[:, :1], rank)
    at = torch.searchsorted(reached, wanted).clamp(max=reached.shape[1] - 1)
    if isinstance(magnitudes, Points):
        return magnitudes.values.gather(1, at)[:, 0]
    count = magnitudes.counts.gather(1, at)
    share = (rank - 0.5 - (reached.gather(1, at) - count)) / count
    low, high = magnitudes.edges.gather(1, at), magnitudes.edges.gather(1, at + 1)
    return (low + share.clamp(0, 1) * (high - low))[:, 0]


def cut(ends: Range, threshold: Tensor) -> Range:
    """The range ``ends``, no further from 0 than ``threshold``; float32 like ``ends``."""
    threshold = threshold.float()
    return ends[0].clamp(-threshold, threshold), ends[1].clamp(-threshold, threshold)


def percentile_range(magnitudes: Distribution, ends: Range, percentile: float, total: int) -> Range:
    """``ends`` cut at that percentile of the magnitudes; 100 is ``ends`` itself."""
    rank = rank_of(percentile, total)
    return ends if rank >= total else cut(ends, magnitude_at(magnitudes, rank))


def squared_error(distribution: Distribution, qparams: QParams, grid: Grid) -> Tensor:
    """The sum over all values of (fake_quantize(x) - x)**2 for K candidates, float64 ``(C, K)``.

    Exact for `Points`. For `Bins` it is the integral over each bin with its values spread evenly:

        scale**3 * sum over edges of G(edge / scale) * (density left of it - density right of it)
        G(u) = k / 12 + (u - k)**3 / 3,   k = round(u) clamped to the grid

    G being the integral of the squared rounding error from 0 to u.

    Shapes:
        qparams: ``(C, K)``.
    """
    if isinstance(distribution, Points):
        # float32, as the fake quantization itself.
        places, weights = distribution.values.float(), distribution.counts.float()
        integrand, power = _square, 2
    else:
        places, weights = _edge_weights(distribution)
        integrand, power = _integral, 3
    scale = qparams.scale.to(places.dtype)
    first, last = (end - qparams.zero_point.to(places.dtype) for end in (grid.quant_min, grid.quant_max))
    sums = torch.empty_like(scale)
    for rows, columns in _chunks(scale.shape, places.shape[1]):
        steps = places[rows, None, :] / scale[rows, columns, None]
        level = steps.round().clamp_(first[rows, columns, None], last[rows, columns, None])
        sums[rows, columns] = torch.bmm(integrand(steps, level), weights[rows, :, None])[:, :, 0]
    return sums.double() * scale.double() ** power


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
    rest = steps.sub_(level)
    return level.add_(rest.square().mul_(rest), alpha=4.0).div_(12.0)


def _edge_weights(bins: Bins) -> tuple[Tensor, Tensor]:
    """Edges that matter, and the density left of each less the density right of it."""
    width = bins.edges.diff(dim=1)
    density = torch.where(width > 0, bins.counts / width.clamp(min=_TINY), 0.0)
    weights = -torch.nn.functional.pad(density, (1, 1)).diff(dim=1)
    used = (weights != 0).any(0)
    return bins.edges[:, used], weights[:, used]


def mse_range(distribution: Distribution, ends: Range, grid: Grid, *, stride: int = 1) -> Range:
    """``ends`` times the ratio in (0, 1] that gives the least squared error, for each channel by itself.

    The first look is at 1, 0.99, ..., 0.06 in steps of ``stride``, and below that at ever smaller ratios;
    what it finds best is then looked at more and more closely, so the stride is a matter of time and not of
    the result.
    """
    parts = []
    for first in range(0, ends[0].numel(), _ROWS):
        rows = slice(first, first + _ROWS)
        part = type(distribution)(*(tensor[rows] for tensor in distribution))
        parts.append(_mse_ratio(part, (ends[0][rows], ends[1][rows]), grid, stride))
    ratio = torch.cat(parts)[:, 0]
    return (ends[0].double() * ratio).float(), (ends[1].double() * ratio).float()


def _mse_ratio(distribution: Distribution, ends: Range, grid: Grid, stride: int) -> Tensor:
    def errors(ratios: Tensor) -> Tensor:
        low, high = ((end.double()[:, None] * ratios).float() for end in ends)
        return squared_error(distribution, grid.qparams(low, high), grid)

    if isinstance(distribution, Points):
        return _search_points(errors, ends[0], int(distribution.counts[0].sum()))
    return _search_bins(errors, ends[0], stride)


def best_range(distribution: Distribution, ranges: Sequence[Range], grid: Grid) -> Range:
    """The one of ``ranges`` with the least squared error, per channel; the first of equals."""
    low, high = (torch.stack(bounds, 1) for bounds in zip(*ranges, strict=True))
    best = squared_error(distribution, grid.qparams(low, high), grid).argmin(1, keepdim=True)
    return low.gather(1, best)[:, 0], high.gather(1, best)[:, 0]


def _coarse(like: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """The ratios of the first look, descending, and how far the next one is; both ``(C, K)``."""
    ratios = [1 - 0.01 * step for step in range(0, 95, stride)]
    while ratios[-1] > _LEAST_RATIO:
        ratios.append(ratios[-1] * 0.8)
    coarse = torch.tensor(ratios, dtype=torch.float64, device=like.device).repeat(like.numel(), 1)
    return coarse, -torch.nn.functional.pad(coarse, (1, 0), mode="replicate").diff(dim=1).roll(-1, 1)


def _search_bins(errors: Errors, like: Tensor, stride: int) -> Tensor:
    """The error is smooth: follow its two lowest dips down."""
    ratios, gap = _coarse(like, max(2, stride))
    found = errors(ratios)
    beside = torch.nn.functional.pad(found, (1, 1), value=torch.inf)
    is_dip = (found <= beside[:, :-2]) & (found <= beside[:, 2:])
    dips = found.where(is_dip, torch.inf).topk(2, largest=False).indices
    ratios, gap = ratios.gather(1, dips), gap.gather(1, (dips - 1).clamp(min=0)).maximum(gap.gather(1, dips))
    for _ in range(3):
        ratios, gap = _zoom(errors, ratios, gap, keep=1)
    return ratios


def _search_points(errors: Errors, like: Tensor, count: int) -> Tensor:
    """The error is ragged, the more the fewer values there are: look closely wherever it is nearly least."""
    ratios, gap = _coarse(like, 1)
    found = errors(ratios)
    margin = 1.02 + 4 / count**0.5
    near = int((found <= margin * found.amin(1, keepdim=True)).sum(1).max())
    best = found.topk(near, largest=False).indices
    ratios, gap = _zoom(errors, ratios.gather(1, best), gap.gather(1, best) / 2, keep=8)
    return _zoom(errors, ratios, gap / 2, keep=1)[0]


def _zoom(errors: Errors, ratios: Tensor, gap: Tensor, *, keep: int) -> tuple[Tensor, Tensor]:
    """The ``keep`` best of 11 ratios around each of ``ratios``, up to ``gap`` away, and their new gap."""
    offsets = torch.linspace(-1, 1, 11, dtype=torch.float64, device=ratios.device)
    around = (ratios[:, :, None] + gap[:, :, None] * offsets).clamp(_LEAST_RATIO / 2, 1).flatten(1)
    gaps = (gap[:, :, None] / 5).expand(-1, -1, 11).flatten(1)
    best = errors(around).topk(min(keep, around.shape[1]), largest=False).indices
    return around.gather(1, best), gaps.gather(1, best)


def kl_range(magnitudes: Distribution, ends: Range, *, levels: int, bins: int) -> Range:
    """``ends`` cut where a distribution clipped there loses least by being told apart in ``levels`` steps.

    With h the counts of ``bins`` equal bins of [0, largest magnitude], h[0] replaced by h[1]:

        for i in levels..bins:
            P = h[:i], the counts beyond i added to its last bin
            Q = h[:i] in ``levels`` equal groups, each group's count spread over its bins that are not empty
            d[i] = sum of P * log(P / Q), both normalised, 1e-10 in place of an empty Q
        threshold = upper edge of bin i of the least mean of d[i - 4 .. i + 4]; the widest of equals

    The mean takes what there is of the nine at both ends, so the largest magnitude itself can be chosen.
    """
    most = torch.maximum(ends[0].abs(), ends[1].abs()).double()
    counts = linear_counts(magnitudes, most, bins)
    counts[:, 0] = counts[:, 1]
    # A channel's table is (bins - levels + 1) x levels: few at a time, to stay in the cache.
    step = max(1, 2 * _CHUNK // (bins * levels))
    parts = [_divergences(counts[row : row + step], levels) for row in range(0, len(counts), step)]
    divergence = torch.cat(parts)
    smooth = _mean_of_nine(divergence)
    best = smooth.shape[1] - 1 - smooth.flip(1).argmin(1)
    return cut(ends, most * (best + levels) / bins)


def linear_counts(magnitudes: Distribution, most: Tensor, bins: int) -> Tensor:
    """The counts of equal bins over [0, ``most``], float64 ``(C, bins)``.

    The count of a bin is spread over those that it overlaps; a lone value goes to the one that holds the
    middle, undivided, for a sparse tail must keep its empty bins.
    """
    reach = most.clamp(min=_TINY)[:, None]
    if isinstance(magnitudes, Points):
        return _counts_at(magnitudes.values / reach * bins, magnitudes.counts, bins)
    edges = magnitudes.edges / reach * bins
    is_lone = magnitudes.counts == 1
    lone = _counts_at((edges[:, 1:] + edges[:, :-1]) / 2, is_lone.double(), bins)
    ends = torch.arange(bins + 1, dtype=torch.float64, device=reach.device).expand(len(reach), -1)
    below = _running(magnitudes.counts.where(~is_lone, 0.0))
    spread = _interpolated(edges, below, ends.contiguous()).diff(dim=1)
    # What sits on the largest magnitude itself.
    spread[:, -1] += below[:, -1] - spread.sum(1)
    return lone + spread


def _counts_at(places: Tensor, counts: Tensor, bins: int) -> Tensor:
    empty = torch.zeros(len(places), bins, dtype=torch.float64, device=places.device)
    return empty.scatter_add_(1, places.long().clamp(max=bins - 1), counts)


def _interpolated(places: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """``values`` at ``places``, both ascending, read off at ``at`` along straight lines."""
    right = torch.searchsorted(places, at, right=True).clamp(1, places.shape[1] - 1)
    low, high = places.gather(1, right - 1), places.gather(1, right)
    share = ((at - low) / (high - low).clamp(min=_TINY)).clamp(0, 1)
    return values.gather(1, right - 1).lerp(values.gather(1, right), share)


def _divergences(counts: Tensor, levels: int) -> Tensor:
    """d[levels], ..., d[bins] of `kl_range`, ``(C, bins - levels + 1)``.

    Bins of a group are neighbours and have one Q, so sums over groups are differences of running sums:

        d[i] = sum of P * log P  -  sum over groups of (their P) * log Q
    """
    bins = counts.shape[1]
    kept = torch.arange(levels, bins + 1, device=counts.device)
    bounds = -(-kept[:, None] * torch.arange(levels + 1, device=counts.device) // levels)
    mass, size = (_running(row)[:, bounds].diff(dim=2) for row in (counts, (counts > 0).double()))
    inside, total = _running(counts)[:, kept], counts.sum(1, keepdim=True)
    share = mass / (size.clamp(min=1) * inside[:, :, None]).clamp(min=_TINY)
    log_q = share.clamp(min=1e-10).log()
    last, beyond = counts[:, kept - 1], total - inside
    log_q_last = torch.where(last > 0, log_q[:, :, -1], math.log(1e-10))
    cross = (mass * log_q).sum(2) + beyond * log_q_last
    own: Tensor = _running(torch.special.xlogy(counts, counts))[:, kept - 1]
    own = own + torch.special.xlogy(last + beyond, last + beyond)
    total = total.clamp(min=_TINY)
    return own / total - total.log() - cross / total


def _running(values: Tensor) -> Tensor:
    """The sums of the first 0, 1, ... values."""
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))


def _mean_of_nine(values: Tensor) -> Tensor:
    window = torch.ones(9, dtype=values.dtype, device=values.device)[None, None]
    total, number = (
        torch.nn.functional.conv1d(row[:, None], window, padding=4)[:, 0]
        for row in (values, torch.ones_like(values))
    )
    return total / number
