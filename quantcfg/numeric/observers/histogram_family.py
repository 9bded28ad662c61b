"""What percentile, mse, kl and mix share: the histogram of the whole stream, or of one batch at a time."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from quantcfg.numeric.batch_range import MOST_VALUES, Question, batch_range
from quantcfg.numeric.bins import in_memory_order
from quantcfg.numeric.distributions import Statistics
from quantcfg.numeric.histogram import Histogram
from quantcfg.numeric.host import is_on_host
from quantcfg.numeric.observers.base import Observer, fold_range
from quantcfg.numeric.observers.records import Range
from quantcfg.numeric.solve import Grid

TRAINING_CONSTANT = 0.01


class HistogramObserver(Observer):
    """An observer whose range is solved from the distribution of the values.

    Without an ``averaging_constant`` it counts the whole stream and solves when asked. With one, and in
    training, it solves every batch by itself and folds the ranges (see `Observer`); in training the constant
    is 0.01 unless given.

    Attributes:
        low, high: the least and the greatest value counted.
    """

    kind: ClassVar[str]
    """The name of the solver in `quantcfg.numeric.batch_range.SOLVERS`."""

    low: Tensor
    high: Tensor
    _is_stale = False

    def __init__(self, *, top_bits: int = 10, averaging_constant: float | None = None, **shared: Any) -> None:
        super().__init__(averaging_constant=averaging_constant, **shared)
        # Where all values of a channel have one sign, an affine grid has twice as many steps for them.
        is_affine = self.per_channel and not self.symmetric
        self._top_bits = max(top_bits, 11) if is_affine else top_bits
        self.histogram: Histogram | None = None
        if averaging_constant is None:
            self.histogram = Histogram(self.num_channels, top_bits=self._top_bits)
            self.register_buffer("low", self.min_val.clone())
            self.register_buffer("high", self.max_val.clone())
        self.register_load_state_dict_post_hook(_catch_up)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> None:
        """See `Observer.forward`; one range in the host's memory is found with few tensor operations."""
        if self.fold_batches or self.histogram is None or not self._is_on_host(x):
            super().forward(x)
            return
        x = self._readable(x)
        low, high = (end.item() for end in torch.aminmax(in_memory_order(x)))
        if not (math.isfinite(low) and math.isfinite(high)):
            super().forward(x)
            return
        self.histogram.add_on_host(x, max(-low, high))
        if low < self.low.item():
            self.low.fill_(low)
        if high > self.high.item():
            self.high.fill_(high)
        self._forget_solution()
        self.num_batches.add_(1)

    def _is_on_host(self, x: Tensor) -> bool:
        return not self.per_channel and x.numel() > 0 and is_on_host(x, self.low)

    @property
    def fold_batches(self) -> bool:
        """Whether each batch is folded into the range of what was counted before (see `Observer`)."""
        return self._folds_batches

    @fold_batches.setter
    def fold_batches(self, folds: bool) -> None:
        self._folds_batches = folds
        if folds:
            self.solve()  # now: a training step must not wait for the device

    @property
    def observed(self) -> bool:
        """Whether there is a range: a batch was seen, or one was loaded."""
        return self._num_counted() > 0 or super().observed

    def solve(self) -> None:
        """The range of all batches so far."""
        if self._is_stale:
            self._is_stale = False
            if self._num_counted():
                self._set_range(self._solve(cast(Histogram, self.histogram), (self.low, self.high)))

    def solve_from(self, other: HistogramObserver) -> None:
        """Take the range that this kind finds in the statistics of another one, whose own they stay.

        Shapes:
            both have the same channels, and ``other`` counted the whole stream.

        Raises:
            NumericError: the other one counted nothing.
        """
        if other.histogram is None or not other._num_counted():
            raise other._never_observed()
        other.solve()
        same = self._question() == other._question()
        found = (other.min_val, other.max_val)
        self.load_range(*(found if same else self._solve(other.histogram, (other.low, other.high))))

    def count_like(self, other: HistogramObserver) -> None:
        """Become what this kind would be, had it seen what ``other`` has counted in the same bins.

        One that folds each batch by itself counts nothing: ``other`` is of its kind then, and has its range.
        """
        self.load_state_dict(other.state_dict())
        if self.histogram is not None:
            self._forget_solution()
        if self.fold_batches:
            self.solve()

    def load_range(self, min_val: Tensor, max_val: Tensor) -> None:
        """See `Observer.load_range`; what was counted before is counted on when data comes."""
        super().load_range(min_val, max_val)
        self._is_stale = False

    def reset_dtype(self, dtype: Any) -> None:
        """Change to the full grid of another dtype and solve again for it; the statistics stay."""
        super().reset_dtype(dtype)
        self._is_stale = True
        if self.fold_batches:
            self.solve()

    @property
    @abstractmethod
    def _own(self) -> tuple[float, ...]:
        """The parameters of the solver of this kind."""

    def _question(self) -> Question:
        grid = Grid(self.quant_min, self.quant_max, self.symmetric)
        return Question(self.kind, grid, self._own, self._top_bits)

    def _solve(self, statistics: Statistics, ends: Range) -> Range:
        return self._question().solve(statistics, ends)

    def _observe(self, x: Tensor, low: Tensor, high: Tensor, finite: Tensor) -> None:
        if self.histogram is None or self.fold_batches:
            ends = low.where(finite, 0.0), high.where(finite, 0.0)
            self._fold(batch_range(x, ends, self.ch_axis, self._question()), finite)
        elif bool(finite):
            self._count(x, (low, high))

    def _count(self, x: Tensor, ends: Range) -> None:
        histogram = cast(Histogram, self.histogram)
        self._check_room(x.numel() // self.num_channels)
        is_first = not self._num_counted()
        histogram.add(x, ch_axis=self.ch_axis, magnitude=torch.maximum(ends[0].abs(), ends[1].abs()))
        torch.minimum(self.low, ends[0], out=self.low)
        torch.maximum(self.high, ends[1], out=self.high)
        self._forget_solution()
        is_short = x.numel() <= MOST_VALUES * self.num_channels
        if is_first and not histogram.is_whole and (is_short or histogram.shares_bins):
            # A weight comes once: its values tell more than bins do.
            self._set_range(batch_range(x, ends, self.ch_axis, self._question()))
            self._is_stale = False

    def _check_room(self, count: int) -> None:
        histogram = cast(Histogram, self.histogram)
        if count > histogram.room:
            seen = histogram.count + count
            raise self._error(f"{seen} values of each of {self.num_channels} channels are too many to count")

    def _set_range(self, found: Range) -> None:
        self.min_val.copy_(found[0])
        self.max_val.copy_(found[1])

    def _forget_solution(self) -> None:
        if self._is_stale:
            return
        self._is_stale = True
        self.min_val.fill_(torch.inf)
        self.max_val.fill_(-torch.inf)

    def _step(self, state: Range, batch: Range) -> Range:
        constant = TRAINING_CONSTANT if self.averaging_constant is None else self.averaging_constant
        return fold_range(state, batch, constant)

    def _merge_statistics(self, other: Observer) -> None:
        other = cast(HistogramObserver, other)
        self._check_room(other._num_counted())
        if other._num_counted():
            if self._num_counted():
                self._forget_solution()
            else:
                self._set_range((other.min_val, other.max_val))
                self._is_stale = other._is_stale
        cast(Histogram, self.histogram).merge(cast(Histogram, other.histogram))
        torch.minimum(self.low, other.low, out=self.low)
        torch.maximum(self.high, other.high, out=self.high)

    def _num_counted(self) -> int:
        return 0 if self.histogram is None else self.histogram.count


def _catch_up(observer: HistogramObserver, _: object) -> None:
    """After a load: a range that was solved is kept, one that was not is found when it is asked for."""
    is_solved = observer.min_val.is_meta or bool((observer.min_val <= observer.max_val).all())
    observer._is_stale = not is_solved
    observer.fold_batches = observer.fold_batches
