"""The plain range of the data."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

from quantcfg.numeric.host import ValueRange, is_on_host, values
from quantcfg.numeric.observers.base import Observer, channel_aminmax


@final
class MinMaxObserver(Observer):
    """The least and the greatest value of each batch, folded over the batches (see `Observer`)."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> None:
        """See `Observer.forward`; a range in the host's memory is folded there, from the second batch on."""
        self.newest = None
        if not self._is_on_host(x):
            super().forward(x)
            return
        low, high = channel_aminmax(self._readable(x), self.ch_axis)
        batch, state = (values(low), values(high)), (values(self.min_val), values(self.max_val))
        if not np.isfinite(np.array((*batch, *state))).all():  # a bad batch, or the first
            super().forward(x)
            return
        if self.records is not None and not self.fold_batches:
            index = self.num_batches if self.batch_index is None else self.batch_index
            self.records.append(index, batch, self._step)
        self.min_val.numpy()[:], self.max_val.numpy()[:] = fold_values(state, batch, self.averaging_constant)
        self.num_batches.add_(1)
        self.newest = batch

    def _is_on_host(self, x: Tensor) -> bool:
        return self.taken is None and x.numel() > 0 and is_on_host(x) and is_on_host(self.min_val)


def fold_values(state: ValueRange, batch: ValueRange, averaging_constant: float | None) -> ValueRange:
    """What `quantcfg.numeric.observers.base.fold_range` computes, where there is a range already."""
    (min_val, max_val), (low, high) = state, batch
    if averaging_constant is None:
        return np.minimum(min_val, low), np.maximum(max_val, high)
    if averaging_constant == 1:
        return low, high
    moved = (low - min_val) * averaging_constant + min_val
    return moved, (high - max_val) * averaging_constant + max_val
