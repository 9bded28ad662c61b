"""The threshold where a quantized distribution diverges least: what kl asks of a histogram."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantcfg.numeric.distributions import Distribution, Points, take_rows
from quantcfg.numeric.solve import Range, cut

# Stands in for 0 where a quotient is not used.
_TINY = torch.finfo(torch.float64).tiny
# Values held by one temporary of a search.
_CHUNK = 1 << 17


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
    kept = torch.arange(levels, bins + 1, device=most.device)
    bounds = -(-kept[:, None] * torch.arange(levels + 1, device=most.device) // levels)
    # A channel's table is (bins - levels + 1) x levels: few at a time, to stay in the cache.
    step = max(1, 2 * _CHUNK // (bins * levels))
    widths = torch.empty_like(most)  # written to: small results kept between large ones would tear the heap
    for row in range(0, most.numel(), step):
        rows = slice(row, row + step)
        counts = linear_counts(take_rows(magnitudes, rows), most[rows], bins)
        counts[:, 0] = counts[:, 1]
        smooth = _mean_of_nine(_divergences(counts, kept, bounds))
        widths[rows] = bins - smooth.flip(1).argmin(1)
    return cut(ends, most * widths / bins)


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
    return empty.scatter_add_(1, places.long().clamp(0, bins - 1), counts)


def _interpolated(places: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """``values`` at ``places``, both ascending, read off at ``at`` along straight lines."""
    right = torch.searchsorted(places, at, right=True).clamp(1, places.shape[1] - 1)
    low, high = places.gather(1, right - 1), places.gather(1, right)
    share = ((at - low) / (high - low).clamp(min=_TINY)).clamp(0, 1)
    return values.gather(1, right - 1).lerp(values.gather(1, right), share)


def _divergences(counts: Tensor, kept: Tensor, bounds: Tensor) -> Tensor:
    """d[levels], ..., d[bins] of `kl_range`, ``(C, bins - levels + 1)``.

    Bins of a group are neighbours and have one Q, so sums over groups are differences of running sums:

        d[i] = sum of P * log P  -  sum over groups of (their P) * log Q
    """
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
