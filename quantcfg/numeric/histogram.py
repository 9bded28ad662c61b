"""A streaming histogram whose bins are the leading bits of floats (`quantcfg.numeric.bins`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantcfg.numeric.bins import (
    EXPONENT_BIAS,
    channel_rows,
    choose_layout,
    exponents,
    in_memory_order,
    slots_of,
    tables,
)
from quantcfg.numeric.counting import add_counts, add_counts_on_host, without_zero
from quantcfg.numeric.distributions import Distribution, Points, magnitude_bins, signed_bins
from quantcfg.numeric.exact import ExactModule
from quantcfg.numeric.host import is_on_host

_EMPTY = (1 << 63) - 1
_COUNT_BITS = 32
# Channels up to which counts are int64; beyond, 2**31 values of each are more than a stream can have.
_LONG_COUNTS = 256


class Histogram(ExactModule):
    """Counts the values of a stream, of the whole tensor or of each channel, signs apart.

    A short stream is kept whole: while every batch has at most ``capacity`` values per channel, and all of
    them together that many different ones, the slots hold those values and how often each came. Beyond that
    they hold the counts of the bins of a `Layout`. Which of the two, the top and every count
    depend on the batches alone, not on their order, and never on which process saw them.

    Shapes:
        slots: int64 ``(C, 2 * num_slots)``, int32 for more than 256 channels. Whole, and then seen as int64:
        ascending entries ``order(value) << 32 | count``, unused ones the largest int64. Binned: the counts of
        the bins from zero up, first of positive values, then of negative ones; the two of zero are left
        empty, for the rest of ``total`` counts as 0.
        top: int64 ``(C,)``, biased exponent of the largest magnitude, at least the number of octaves.
        is_whole: float32 ``(1,)``, 1 or 0. total: int64 ``(1,)``, values seen per channel.

    Memory, with 10 ``top_bits``: 123 KB per tensor; per channel 67 KB for up to 256 channels, 34 KB for up to
    8,192, and beyond never more than the 275 MB of those. Each further bit is almost twice as much.
    """

    slots: Tensor
    top: Tensor
    is_whole: Tensor
    total: Tensor

    def __init__(self, num_channels: int = 1, *, top_bits: int = 11) -> None:
        super().__init__()
        self.layout = choose_layout(num_channels, top_bits)
        self.shares_bins = self.layout != choose_layout(min(2, num_channels), top_bits)
        """Whether there are so many channels that each has fewer bins than it could use."""
        self.num_channels = num_channels
        dtype = torch.int64 if num_channels <= _LONG_COUNTS else torch.int32
        self.capacity = self.layout.num_slots * dtype.itemsize // 4
        entries = torch.full((num_channels, self.capacity), _EMPTY)
        self.register_buffer("slots", entries.view(dtype))
        self.register_buffer("top", torch.full((num_channels,), self.layout.num_octaves))
        self.register_buffer("is_whole", torch.ones(1, dtype=torch.float32))
        self.register_buffer("total", torch.zeros(1, dtype=torch.int64))

    def reset(self) -> None:
        """Forget everything."""
        self._entries.fill_(_EMPTY)
        self.top.fill_(self.layout.num_octaves)
        self.is_whole.fill_(1.0)
        self.total.zero_()

    @torch.no_grad()
    def add(self, x: Tensor, *, ch_axis: int = -1, magnitude: Tensor | None = None) -> None:
        """Count the values of ``x``, which are finite.

        Shapes:
            magnitude: ``(C,)``, the largest of each channel, where the caller has it already.
        """
        if self.num_channels == 1 and is_on_host(x):
            self.add_on_host(x, float(x.detach().abs().max()) if magnitude is None else magnitude.item())
            return
        if magnitude is None:
            others = [axis for axis in range(x.dim()) if axis != ch_axis]
            magnitude = x.detach().float().abs().amax(others).reshape(-1)
        x = x.detach()
        count = x.numel() // self.num_channels
        if bool(self.is_whole) and count <= self.capacity:
            self._raise_top(exponents(magnitude))
            self._take_entries((_order(channel_rows(x, ch_axis).float()) << _COUNT_BITS) | 1)
        else:
            self._become_binned()
            self._raise_top(exponents(magnitude))
            add_counts(self.slots, x, ch_axis, self.top, self.layout)
        self.total += count

    @torch.no_grad()
    def add_on_host(self, x: Tensor, magnitude: float) -> None:
        """The same for one channel in the memory of the host, whose largest magnitude is known there."""
        x = x.detach()
        if x.numel() > self.capacity:
            self._become_binned()
        top = int(self.top.item())
        if _exponent(magnitude) > top:
            top = _exponent(magnitude)
            self._raise_top(torch.full_like(self.top, top))
        if self.is_whole.item():
            self._take_entries((_order(channel_rows(x, -1).float()) << _COUNT_BITS) | 1)
        else:
            add_counts_on_host(self.slots, in_memory_order(x).reshape(-1), top, self.layout)
        self.total.add_(x.numel())

    def merge(self, other: Histogram) -> None:
        """Become the histogram that has seen both streams; ``other`` stays as it is."""
        if bool(self.is_whole) and bool(other.is_whole):
            self._raise_top(other.top)
            self._take_entries(other._entries)
        else:
            self._become_binned()
            self._raise_top(other.top)
            self.slots += self._binned_slots_of(other)
        self.total += other.total

    @property
    def room(self) -> int:
        """How many more values per channel can be counted."""
        return torch.iinfo(self.slots.dtype).max - self.count

    @property
    def count(self) -> int:
        """Values per channel."""
        return int(self.total)

    def distribution(self, low: Tensor, high: Tensor) -> Distribution:
        """What is known of the stream, whose least and greatest values are ``low`` and ``high``, ``(C,)``."""
        if bool(self.is_whole):
            return self._points()
        return signed_bins(self.slots, self.top, self.layout, (low, high))

    def magnitudes(self, most: Tensor) -> Distribution:
        """The same without signs, ``most`` being the largest magnitudes, ``(C,)``; from zero up."""
        if not bool(self.is_whole):
            return magnitude_bins(self.slots, self.top, self.layout, most, self.count)
        values, counts = self._points()
        return Points(values.abs(), counts)

    @property
    def _entries(self) -> Tensor:
        return self.slots.view(torch.int64)

    def _points(self) -> Points:
        entries = self._entries[:, : max(1, self._width())]
        used = entries != _EMPTY
        values = torch.where(used, _value(entries >> _COUNT_BITS).double(), 0.0)
        return Points(values, torch.where(used, entries & ((1 << _COUNT_BITS) - 1), 0).double())

    def _width(self) -> int:
        """How many slots the channel with most values has in use."""
        return int((self._entries != _EMPTY).sum(1).max())

    def _take_entries(self, entries: Tensor) -> None:
        """Add values with their counts to the whole stream, or turn to bins if they are too many."""
        entries = torch.cat((self._entries[:, : self._width()], entries), 1).sort(1).values
        keys = entries >> _COUNT_BITS
        is_first = torch.ones_like(keys, dtype=torch.bool)
        is_first[:, 1:] = keys[:, 1:] != keys[:, :-1]
        run = is_first.cumsum(1) - 1
        used = entries != _EMPTY
        counts = torch.where(used, entries & ((1 << _COUNT_BITS) - 1), 0)
        totals = torch.zeros_like(counts).scatter_add_(1, run, counts)
        if int((is_first & used).sum(1).max()) > self.capacity or int(totals.max()) >= 1 << 31:
            self.is_whole.fill_(0.0)
            self.slots.copy_(self._bin_entries(torch.where(used, keys, 0), counts))
            return
        merged = torch.full_like(entries, _EMPTY).scatter_(
            1, run, torch.where(used, keys << _COUNT_BITS, _EMPTY)
        )
        merged = (merged | totals)[:, : self.capacity]
        self._entries[:, : merged.shape[1]] = merged

    def _become_binned(self) -> None:
        if not bool(self.is_whole):
            return
        points = self._points()
        self.is_whole.fill_(0.0)
        self.slots.copy_(self._bin_entries(_order(points.values.float()), points.counts.long()))

    def _binned_slots_of(self, other: Histogram) -> Tensor:
        """The counts of ``other`` in this histogram's bins; its top is not higher."""
        if bool(other.is_whole):
            points = other._points()
            return self._bin_entries(_order(points.values.float()), points.counts.long())
        return self._shifted(other.slots, self.top - other.top)

    def _raise_top(self, top: Tensor) -> None:
        top = torch.maximum(self.top, top)
        if not bool(self.is_whole) and not torch.equal(top, self.top):
            self.slots.copy_(self._shifted(self.slots, top - self.top))
        self.top.copy_(top)

    def _shifted(self, slots: Tensor, octaves: Tensor) -> Tensor:
        """The same counts in the bins of a top that is ``octaves`` higher."""
        slot_of_cell, cell_of_slot, *_ = tables(self.layout, slots)
        cells = (cell_of_slot - (octaves[:, None] << self.layout.top_bits)).clamp(min=0)
        target = slot_of_cell[cells].long()
        counts = slots.view(self.num_channels, 2, -1)
        moved = torch.zeros_like(counts).scatter_add_(2, target[:, None].expand_as(counts), counts)
        return without_zero(moved.view_as(slots))

    def _bin_entries(self, keys: Tensor, counts: Tensor) -> Tensor:
        slots = slots_of(_value(keys), self.top[:, None], self.layout)
        empty = torch.zeros(self.slots.shape, dtype=torch.int64, device=keys.device)
        return without_zero(empty.scatter_add_(1, slots, counts))


def _exponent(magnitude: float) -> int:
    """The biased exponent of a float32 magnitude."""
    return max(0, math.frexp(magnitude)[1] + EXPONENT_BIAS - 1)


def _order(values: Tensor) -> Tensor:
    """int64 numbers in the order of float32 values; -0.0 counts as 0.0."""
    bits = (values + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()


def _value(order: Tensor) -> Tensor:
    bits = order.int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)
