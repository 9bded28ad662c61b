"""The plain range of the data."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from quantcfg.numeric.bins import in_memory_order
from quantcfg.numeric.host import is_on_host
from quantcfg.numeric.observers.base import Observer

FloatRange = tuple[float, float]


@final
class MinMaxObserver(Observer):
    """The least and the greatest value of each batch, folded over the batches (see `Observer`)."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> None:
        """See `Observer.forward`; one range in the host's memory is folded there."""
        if not self._is_on_host(x):
            super().forward(x)
            return
        low, high = (end.item() for end in torch.aminmax(in_memory_order(self._readable(x))))
        if not (math.isfinite(low) and math.isfinite(high)):
            super().forward(x)
            return
        if self.records is not None and not self.fold_batches:
            index = self.num_batches if self.batch_index is None else self.batch_index
            self.records.append(index, (low, high), self._step)
        low, high = fold_floats(self.min_val.item(), self.max_val.item(), low, high, self.averaging_constant)
        self.min_val.fill_(low)
        self.max_val.fill_(high)
        self.num_batches.add_(1)

    def _is_on_host(self, x: Tensor) -> bool:
        plain = not self.per_channel and self.taken is None and x.numel() > 0
        return plain and is_on_host(x) and is_on_host(self.min_val)


def fold_floats(
    min_val: float, max_val: float, low: float, high: float, averaging_constant: float | None
) -> FloatRange:
    """What `quantcfg.numeric.observers.base.fold_range` computes, of one channel."""
    if averaging_constant is None:
        return min(min_val, low), max(max_val, high)
    if min_val > max_val or averaging_constant == 1:
        return low, high
    moved = (low - min_val) * averaging_constant + min_val
    return moved, (high - max_val) * averaging_constant + max_val
