"""The mean plus and minus some standard deviations."""

from __future__ import annotations

from typing import Any, cast, final

import torch
from torch import Tensor

from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.observers.exact_sum import ExactSum
from quantcfg.numeric.observers.records import Range


@final
class ClipStdObserver(Observer):
    """The range of the data, no wider than ``std_scale`` standard deviations around the mean.

        low  = max(min, mean - std_scale * std)
        high = min(max, mean + std_scale * std)

    with the unbiased standard deviation; one element alone has the deviation 0. With
    ``averaging_constant=None`` mean and deviation are those of the whole stream: the moments of the batches
    are added exactly (`ExactSum`), so neither order nor merging changes a bit.

    Raises:
        ValueError: ``std_scale`` is not above 0.
    """

    own_parameters = ("std_scale",)

    count: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self, *, std_scale: float = 3.0, averaging_constant: float | None = 0.01, **shared: Any
    ) -> None:
        super().__init__(averaging_constant=averaging_constant, **shared)
        if not 0 < std_scale < float("inf"):
            raise ValueError(f"std_scale must be above 0 (got {std_scale})")
        self.std_scale = std_scale
        if averaging_constant is None:
            self.register_buffer("count", torch.zeros(1, dtype=torch.int64))
            self.register_buffer("low", self.min_val.clone())
            self.register_buffer("high", self.max_val.clone())
            self.sum = ExactSum(self.num_channels)
            self.sum_of_squares = ExactSum(self.num_channels)

    def solve(self) -> None:
        """The range of all batches so far."""
        if self.averaging_constant is not None or self._is_empty():
            return
        mean = self.sum.value() / self.count
        squares = (self.sum_of_squares.value() - self.count * mean.square()).clamp(min=0.0)
        low, high = self._clipped((self.low, self.high), mean, squares, self.count)
        self.min_val.copy_(low)
        self.max_val.copy_(high)

    @property
    def observed(self) -> bool:
        """Whether there is a range: a batch was seen, or one was loaded."""
        self.solve()
        return super().observed

    def _is_empty(self) -> bool:
        return int(self.count) == 0

    def _observe(self, x: Tensor, low: Tensor, high: Tensor, finite: Tensor) -> None:
        mean, squares, number = moments(x, self.ch_axis, torch.maximum(low.abs(), high.abs()))
        count = torch.full_like(self.num_batches, number)
        if self.averaging_constant is not None:
            self._fold(self._clipped((low, high), mean, squares, count), finite)
        else:
            self._add((low, high), mean, squares, count, finite)

    @property
    def taken_size(self) -> int:
        """How many values an entry of ``taken`` has."""
        return super().taken_size if self.averaging_constant is not None else 4 * self.num_channels + 2

    def replay(self, entry: Tensor) -> None:
        """Take in again what a batch added, an entry of ``taken``. Batches are not counted again."""
        if self.averaging_constant is not None:
            super().replay(entry)
            return
        low, high, mean, squares = entry[:-2].view(4, -1)
        self._add((low.float(), high.float()), mean, squares, entry[-2:-1].long(), entry[-1] > 0)

    def _add(self, ends: Range, mean: Tensor, squares: Tensor, count: Tensor, finite: Tensor) -> None:
        """Add the moments of a batch to those of the stream."""
        low, high = ends
        self._note(low, high, mean, squares, count, finite)
        self.sum.add(torch.where(finite, mean * count, 0.0))
        self.sum_of_squares.add(torch.where(finite, squares + count * mean.square(), 0.0))
        self.count.add_(torch.where(finite, count, 0))
        torch.minimum(self.low, low.where(finite, self.low), out=self.low)
        torch.maximum(self.high, high.where(finite, self.high), out=self.high)
        # What was solved, or loaded, is no longer true.
        self.min_val.masked_fill_(finite, torch.inf)
        self.max_val.masked_fill_(finite, -torch.inf)

    def _clipped(self, ends: Range, mean: Tensor, squares: Tensor, count: Tensor) -> Range:
        reach = self.std_scale * (squares / (count - 1).clamp(min=1)).sqrt()
        low = torch.maximum(ends[0].double(), mean - reach).float()
        high = torch.minimum(ends[1].double(), mean + reach).float()
        # The mean may round past the one value of a constant tensor.
        return torch.minimum(low, high), high

    def _merge_statistics(self, other: Observer) -> None:
        other = cast(ClipStdObserver, other)
        self.sum.digits += other.sum.digits
        self.sum_of_squares.digits += other.sum_of_squares.digits
        self.count.add_(other.count)
        torch.minimum(self.low, other.low, out=self.low)
        torch.maximum(self.high, other.high, out=self.high)
        self.min_val.masked_fill_(other.count > 0, torch.inf)
        self.max_val.masked_fill_(other.count > 0, -torch.inf)


def moments(x: Tensor, ch_axis: int, magnitude: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean, sum of squared deviations from it, and number of values, of the tensor or of each channel.

    The values are first divided by a power of two near ``magnitude``, the largest of them, so that squares
    neither overflow nor vanish; then two passes in float32, with torch's pairwise sums.

    Shapes:
        magnitude: ``(1,)`` or ``(C,)``; mean and squares come in the same shape, float64.
    """
    # 2**-126 is the smallest power whose reciprocal is finite.
    unit = torch.exp2(torch.frexp(magnitude.clamp(min=2.0**-126))[1].clamp(max=127).float())
    axes = [axis for axis in range(x.dim()) if axis != ch_axis]
    shape = [-1 if axis == ch_axis else 1 for axis in range(x.dim())]
    values = x.float() / unit.view(shape)
    count = x.numel() // magnitude.numel()
    if not axes:
        return x.double(), torch.zeros_like(magnitude, dtype=torch.float64), count
    mean = values.sum(axes, keepdim=True) / count
    squares = values.sub_(mean).square_().sum(axes).reshape(-1).double()
    return mean.reshape(-1).double() * unit.double(), squares * unit.double().square(), count
