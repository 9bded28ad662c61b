"""What percentile, mse, kl and mix share: the histogram of the whole stream, or of one batch at a time."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor

from quantcfg.numeric.histogram import Batch, Histogram, channel_rows
from quantcfg.numeric.observers.base import Observer, fold_range
from quantcfg.numeric.observers.records import Range
from quantcfg.numeric.solve import Grid

TRAINING_CONSTANT = 0.01
# Channels of one batch that are solved at a time, so that each has all the bins it can use.
_CHANNELS = 256
# Values per channel up to which a batch is solved from them all, without a histogram.
_MOST_VALUES = 8192


class HistogramObserver(Observer):
    """An observer whose range is solved from the distribution of the values.

    Without an ``averaging_constant`` it counts the whole stream and solves when asked. With one, and in
    training, it solves every batch by itself and folds the ranges (see `Observer`); in training the constant
    is 0.01 unless given.

    Attributes:
        low, high: the least and the greatest value counted.
    """

    low: Tensor
    high: Tensor

    def __init__(self, *, top_bits: int = 9, averaging_constant: float | None = None, **shared: Any) -> None:
        super().__init__(averaging_constant=averaging_constant, **shared)
        self._top_bits = top_bits
        self._is_stale = False
        self.histogram: Histogram | None = None
        if averaging_constant is None:
            self.histogram = Histogram(self.num_channels, top_bits=top_bits)
            self.register_buffer("low", self.min_val.clone())
            self.register_buffer("high", self.max_val.clone())

    @property
    def observed(self) -> bool:
        """Whether there is a range: a batch was seen, or one was loaded."""
        return self._num_counted() > 0 or super().observed

    def solve(self) -> None:
        """The range of all batches so far."""
        if self._is_stale and self.histogram is not None and self._num_counted():
            low, high = self._solve(self.histogram, (self.low, self.high))
            self.min_val.copy_(low)
            self.max_val.copy_(high)
        self._is_stale = False

    def solve_from(self, other: HistogramObserver) -> None:
        """Take the range that this kind finds in the statistics of another one, whose own they stay.

        Shapes:
            both have the same channels, and ``other`` counted the whole stream.

        Raises:
            NumericError: the other one counted nothing.
        """
        if other.histogram is None or not other._num_counted():
            raise other._never_observed()
        low, high = self._solve(other.histogram, (other.low, other.high))
        self.load_range(low, high)

    def reset_dtype(self, dtype: Any) -> None:
        """Change to the full grid of another dtype and solve again for it; the statistics stay."""
        super().reset_dtype(dtype)
        self._is_stale = True

    @property
    def grid(self) -> Grid:
        """The integers that the range is solved for."""
        return Grid(self.quant_min, self.quant_max, self.symmetric)

    @abstractmethod
    def _solve(self, histogram: Histogram | Batch, ends: Range) -> Range:
        """The range for a distribution whose least and greatest values are ``ends``, ``(C,)``."""

    def _observe(self, x: Tensor, low: Tensor, high: Tensor, finite: Tensor) -> None:
        if not bool(finite):
            return
        if self.histogram is None or self.fold_batches:
            self._enter_folding()
            self._fold(self._batch_range(x, low, high), finite)
            return
        self.histogram.add(x, ch_axis=self.ch_axis, magnitude=torch.maximum(low.abs(), high.abs()))
        torch.minimum(self.low, low, out=self.low)
        torch.maximum(self.high, high, out=self.high)
        self._forget_solution()

    def _forget_solution(self) -> None:
        self._is_stale = True
        self.min_val.fill_(torch.inf)
        self.max_val.fill_(-torch.inf)

    def _enter_folding(self) -> None:
        """What was counted before becomes the range that batches are folded into."""
        if self._is_stale and self.histogram is not None:
            self.solve()
            self.histogram.reset()
            self.low.fill_(torch.inf)
            self.high.fill_(-torch.inf)

    def _batch_range(self, x: Tensor, low: Tensor, high: Tensor) -> Range:
        count = x.numel() // self.num_channels
        whole = max(1, _MOST_VALUES * _CHANNELS // count)
        at_a_time = whole if count <= _MOST_VALUES else _CHANNELS
        ranges = []
        for first in range(0, self.num_channels, at_a_time):
            channels = slice(first, first + at_a_time)
            ranges.append(self._solve_batch(self._part(x, channels), (low[channels], high[channels])))
        lows, highs = zip(*ranges, strict=True)
        return torch.cat(lows), torch.cat(highs)

    def _part(self, x: Tensor, channels: slice) -> Tensor:
        return x.movedim(self.ch_axis, 0)[channels].movedim(0, self.ch_axis) if self.per_channel else x

    def _solve_batch(self, x: Tensor, ends: Range) -> Range:
        num_channels = ends[0].numel()
        if x.numel() // num_channels <= _MOST_VALUES:
            return self._solve(Batch(channel_rows(x, self.ch_axis)), ends)
        histogram = Histogram(num_channels, top_bits=self._top_bits).to(x.device)
        histogram.add(x, ch_axis=self.ch_axis, magnitude=torch.maximum(ends[0].abs(), ends[1].abs()))
        return self._solve(histogram, ends)

    def _step(self, state: Range, batch: Range) -> Range:
        constant = TRAINING_CONSTANT if self.averaging_constant is None else self.averaging_constant
        return fold_range(state, batch, constant)

    def _merge_statistics(self, other: Observer) -> None:
        other = cast(HistogramObserver, other)
        cast(Histogram, self.histogram).merge(cast(Histogram, other.histogram))
        torch.minimum(self.low, other.low, out=self.low)
        torch.maximum(self.high, other.high, out=self.high)
        if other._num_counted():
            self._forget_solution()

    def _num_counted(self) -> int:
        return 0 if self.histogram is None else int(self.histogram.total)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._is_stale = True
