"""The plain range of the data."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

from quantcfg.numeric.bins import in_memory_order
from quantcfg.numeric.host import ValueRange, is_finite, is_on_host, set_values, values
from quantcfg.numeric.observers.base import NATIVE, Observer, channel_aminmax


@final
class MinMaxObserver(Observer):
    """The least and the greatest value of each batch, folded over the batches (see `Observer`)."""

    def forward(self, x: Tensor) -> None:
        """See `Observer.forward`; a range in the host's memory is folded there, from the second batch on."""
        if self.newest is not None:  # to set what a module holds takes longer than to ask
            self.newest = None
        if not (self._is_on_host(x) and self._fold_on_host(x)):
            super().forward(x)

    def _is_on_host(self, x: Tensor) -> bool:
        is_plain = x.dtype in NATIVE and x.layout is torch.strided and x.numel() > 0
        return is_plain and self.taken is None and is_on_host(x) and is_on_host(self.min_val)

    def _fold_on_host(self, x: Tensor) -> bool:
        """Take one batch in, if it is neither the first nor a bad one; whether that is so."""
        batch, state = self._values(x), (values(self.min_val), values(self.max_val))
        if not (is_finite(batch) and is_finite(state)):
            return False
        count = int(self.num_batches.item())
        if self.fold_batches:
            self.newest = batch
        elif self.records is not None:
            self.records.append(count if self.batch_index is None else self.batch_index, batch, self._step)
        low, high = fold_values(state, batch, self.averaging_constant)
        set_values(self.min_val, low)
        set_values(self.max_val, high)
        self.num_batches.fill_(count + 1)
        return True

    def _values(self, x: Tensor) -> ValueRange:
        if self.ch_axis < 0:
            low, high = torch.aminmax(in_memory_order(x))
        else:
            low, high = channel_aminmax(self._readable(x), self.ch_axis)
        return values(low), values(high)


def fold_values(state: ValueRange, batch: ValueRange, averaging_constant: float | None) -> ValueRange:
    """What `quantcfg.numeric.observers.base.fold_range` computes, where there is a range already."""
    (min_val, max_val), (low, high) = state, batch
    if averaging_constant is None:
        return np.minimum(min_val, low), np.maximum(max_val, high)
    if averaging_constant == 1:
        return low, high
    moved = (low - min_val) * averaging_constant + min_val
    return moved, (high - max_val) * averaging_constant + max_val
