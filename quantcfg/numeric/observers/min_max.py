"""The plain range of the data."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

from quantcfg.numeric.bins import in_memory_order
from quantcfg.numeric.host import ValueRange, is_finite, is_on_host, range_of, set_range
from quantcfg.numeric.observers.base import NATIVE, Observer, channel_aminmax


@final
class MinMaxObserver(Observer):
    """The least and the greatest value of each batch, folded over the batches (see `Observer`)."""

    def forward(self, x: Tensor) -> ValueRange | None:
        """See `Observer.forward`; a range in the host's memory is folded there, from the second batch on."""
        batch = self._fold_on_host(x) if self.taken is None else None
        return super().forward(x) if batch is None else batch

    def _fold_on_host(self, x: Tensor) -> ValueRange | None:
        """Take one batch in, if it is on the host and neither the first nor a bad one; the range of it."""
        min_val, max_val = self.min_val, self.max_val
        is_plain = x.dtype in NATIVE and x.layout is torch.strided and x.numel() > 0
        if not (is_plain and is_on_host(x, min_val)):
            return None
        batch = self._values(x)
        # The range before is not asked for where it does not matter.
        state = batch if self.averaging_constant == 1 else range_of(min_val, max_val)
        if not (is_finite(batch) and (state is batch or is_finite(state))):
            return None
        num_batches = self.num_batches
        if not self.fold_batches and (records := self.records) is not None:
            index = int(num_batches.item()) if self.batch_index is None else self.batch_index
            records.append(index, batch, self._step)
        set_range(min_val, max_val, fold_values(state, batch, self.averaging_constant))
        num_batches.add_(1)
        return batch

    def _values(self, x: Tensor) -> ValueRange:
        if self.ch_axis < 0:
            return range_of(*torch.aminmax(x if x.is_contiguous() else in_memory_order(x)))
        return range_of(*channel_aminmax(self._readable(x), self.ch_axis))


def fold_values(state: ValueRange, batch: ValueRange, averaging_constant: float | None) -> ValueRange:
    """What `quantcfg.numeric.observers.base.fold_range` computes, where there is a range already."""
    (min_val, max_val), (low, high) = state, batch
    if averaging_constant is None:
        return np.minimum(min_val, low), np.maximum(max_val, high)
    if averaging_constant == 1:
        return batch
    moved = (low - min_val) * averaging_constant + min_val
    return moved, (high - max_val) * averaging_constant + max_val
