"""The range that one batch asks for, without a word from the device: what training folds at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantcfg.numeric.bins import choose_layout
from quantcfg.numeric.distributions import Statistics, batch_statistics
from quantcfg.numeric.divergence import kl_range
from quantcfg.numeric.solve import Grid, Range, best_range, mse_range, percentile_range, rank_of

# Channels of one batch that are solved at a time, so that each has all the bins it can use.
_CHANNELS = 256
# Values per channel up to which a batch is solved from them all, without a histogram; and how many, of all
# channels, are then solved at a time.
MOST_VALUES, _MOST_TOGETHER = 1 << 14, 1 << 21

PERCENTILES = (99.9, 99.95, 99.99, 99.993, 99.995, 99.997, 99.999, 99.9995, 99.9999)
"""The candidates of mix."""


@dataclass(frozen=True, slots=True)
class Question:
    """All that a range depends on besides the values, in plain numbers.

    Attributes:
        kind: one of `SOLVERS`.
        own: the parameters of that kind, in the order of its solver.
        top_bits: the resolution of the histogram, see `quantcfg.numeric.bins.Layout`.
    """

    kind: str
    grid: Grid
    own: tuple[float, ...]
    top_bits: int

    def solve(self, statistics: Statistics, ends: Range) -> Range:
        """The range for values whose least and greatest are ``ends``, float32 ``(C,)`` each."""
        return SOLVERS[self.kind](statistics, ends, self.grid, *self.own)


def batch_range(x: Tensor, ends: Range, ch_axis: int, question: Question) -> Range:
    """The range for one batch by itself; a compiled graph has it as one op, run as in eager.

    What a compiler would make of the op itself adds floats in another order, and among candidates that are
    equally good it could choose another one.

    Shapes:
        ends: float32 ``(C,)`` each, the least and the greatest of ``x``, finite; so is the result.
    """
    if not torch.compiler.is_compiling():
        return _batch_range(x, ends, ch_axis, question)
    grid = [question.grid.quant_min, question.grid.quant_max, int(question.grid.symmetric)]
    plain = (question.kind, grid, list(question.own), question.top_bits)
    low, high = torch.ops.quantcfg.batch_range(x, *ends, ch_axis, *plain)
    return low, high


@torch.library.custom_op("quantcfg::batch_range", mutates_args=())
def _op(  # noqa: PLR0917 - an op takes plain values only
    x: Tensor,
    low: Tensor,
    high: Tensor,
    ch_axis: int,
    kind: str,
    grid: list[int],
    own: list[float],
    top_bits: int,
) -> tuple[Tensor, Tensor]:
    question = Question(kind, Grid(grid[0], grid[1], bool(grid[2])), tuple(own), top_bits)
    low, high = _batch_range(x, (low, high), ch_axis, question)
    return low.clone(), high.clone()


@_op.register_fake
def _(x: Tensor, low: Tensor, high: Tensor, *_: object) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(low), torch.empty_like(high)


def _batch_range(x: Tensor, ends: Range, ch_axis: int, question: Question) -> Range:
    num_channels = ends[0].numel()
    count = x.numel() // num_channels
    at_a_time = max(1, _MOST_TOGETHER // count) if count <= MOST_VALUES else _CHANNELS
    ranges = []
    for first in range(0, num_channels, at_a_time):
        channels = slice(first, first + at_a_time)
        part = x if num_channels == 1 else x.movedim(ch_axis, 0)[channels].movedim(0, ch_axis)
        part_ends = ends[0][channels], ends[1][channels]
        layout = choose_layout(part_ends[0].numel(), question.top_bits)
        statistics = batch_statistics(part, ch_axis, part_ends, layout, MOST_VALUES)
        ranges.append(question.solve(statistics, part_ends))
    lows, highs = zip(*ranges, strict=True)
    return torch.cat(lows), torch.cat(highs)


def _percentile(statistics: Statistics, ends: Range, grid: Grid, percentile: float) -> Range:  # noqa: ARG001
    return percentile_range(statistics.magnitudes(_most(ends)), ends, percentile, statistics.count)


def _mse(statistics: Statistics, ends: Range, grid: Grid) -> Range:
    return mse_range(statistics.distribution(*ends), ends, grid, count=statistics.count)


def _kl(statistics: Statistics, ends: Range, grid: Grid, levels: float, bins: float) -> Range:  # noqa: ARG001
    return kl_range(statistics.magnitudes(_most(ends)), ends, levels=int(levels), bins=int(bins))


def _mix(statistics: Statistics, ends: Range, grid: Grid) -> Range:
    magnitudes, count = statistics.magnitudes(_most(ends)), statistics.count
    # Of few values many percentiles are the same one.
    candidates = {rank_of(percentile, count): percentile for percentile in reversed(PERCENTILES)}
    ranges = [percentile_range(magnitudes, ends, candidates[rank], count) for rank in sorted(candidates)]
    return best_range(statistics.distribution(*ends), ranges, grid)


def _most(ends: Range) -> Tensor:
    return torch.maximum(ends[0].abs(), ends[1].abs())


SOLVERS: dict[str, Callable[..., Range]] = {"percentile": _percentile, "mse": _mse, "kl": _kl, "mix": _mix}
"""Each kind's way from ``(statistics, ends, grid, *own)`` to a range."""
