"""A streaming histogram whose bins are the leading bits of floats.

The bits of a float, shifted right, are a logarithmic bin number: exponent and leading bits of the mantissa.
Such bins are known before any data, so counts are exact, nothing is read twice, and merging is addition.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from quantcfg.numeric.exact import ExactModule

_EXPONENT_BIAS = 127
_MANTISSA = 23
# Elements counted at a time: the index of a block stays in the cache, and no large temporary is mapped.
_BLOCK = 1 << 20
# Counts kept for all channels together, unless that leaves less than `_COARSEST` per channel.
_MOST_COUNTS = 1 << 22
# Width of a bin for one value, as a part of it: far below a step of 16 bits, far above float64's rounding.
_HAIR = 2.0**-24
_EMPTY = (1 << 63) - 1
_COUNT_BITS = 32


class Layout(NamedTuple):
    """Which bins a histogram has, relative to the power of two below its largest magnitude (the top).

    Octave o holds the magnitudes [2**(top - o), 2**(top - o + 1)) in 2**max(top_bits - o, least_bits) bins of
    equal width: linear at the top, where the steps of a grid are as wide as the bins, logarithmic below.
    Magnitudes under the last octave count as 0. A bin of a lower octave is a union of the bins that it would
    have in a higher one, so the top can rise without an error.
    """

    top_bits: int
    least_bits: int
    num_octaves: int

    def octave_bits(self, octave: int) -> int:
        """How many bits of the mantissa tell the bins of an octave apart."""
        return max(self.top_bits - octave, self.least_bits)

    @property
    def num_slots(self) -> int:
        """Bins per sign, the one of zero included."""
        return 1 + sum(1 << self.octave_bits(octave) for octave in range(self.num_octaves))


class Tables(NamedTuple):
    """A layout as tensors. A cell is as wide as the narrowest bin of its octave could be.

    Shapes:
        slot_of_cell: int32 ``(1 + num_octaves * 2**top_bits,)``, ascending; cell and slot 0 are zero.
        cell_of_slot: int64 ``(num_slots,)``, the lowest cell of each slot.
        edges: float64 ``(num_slots,)``, from the lower edge of slot 1 on, in units of 2**top; the last is 2.
    """

    slot_of_cell: Tensor
    cell_of_slot: Tensor
    edges: Tensor


@lru_cache(maxsize=32)
def _tables(layout: Layout, device: torch.device) -> Tables:
    slots, edges = [0], []
    for octave in reversed(range(layout.num_octaves)):
        bits = layout.octave_bits(octave)
        cells_per_slot = 1 << (layout.top_bits - bits)
        first = slots[-1] + 1
        slots += [first + cell // cells_per_slot for cell in range(1 << layout.top_bits)]
        edges += [2.0**-octave * (1 + place / (1 << bits)) for place in range(1 << bits)]
    slot_of_cell = torch.tensor(slots, dtype=torch.int32, device=device)
    cell_of_slot = torch.searchsorted(slot_of_cell, torch.arange(layout.num_slots, device=device))
    return Tables(slot_of_cell, cell_of_slot, torch.tensor([*edges, 2.0], dtype=torch.float64, device=device))


def choose_layout(num_channels: int, top_bits: int) -> Layout:
    """The layout for that many channels: one tensor may have all bins it likes, channels share a budget.

    Per tensor 40 octaves of at least 128 bins. Per channel 24 octaves, 2,048 bins in the highest for up to
    500 channels, and half as many for every doubling beyond.
    """
    if num_channels == 1:
        return Layout(top_bits, min(7, top_bits), 40)
    layouts = [Layout(bits, min(3, bits // 2), 24) for bits in range(max(11, top_bits), 0, -1)]
    fits = (layout for layout in layouts if 2 * layout.num_slots * num_channels <= _MOST_COUNTS)
    return next(fits, layouts[-1])


class Points(NamedTuple):
    """A distribution known value by value.

    Shapes:
        values: float64 ``(C, V)``, ascending, 0 where ``counts`` is 0; counts: float64 ``(C, V)``.
    """

    values: Tensor
    counts: Tensor


class Bins(NamedTuple):
    """A distribution known by the counts of bins; within one, values count as spread evenly.

    Shapes:
        edges: float64 ``(C, B + 1)``, ascending; counts: float64 ``(C, B)``. Magnitudes too small for the
        bins are left out: they count as 0.
    """

    edges: Tensor
    counts: Tensor


Distribution = Points | Bins


class Batch:
    """The distribution of one batch that is small enough to be kept as it is."""

    def __init__(self, rows: Tensor) -> None:
        self.values = rows.double().sort(1).values
        self.total = torch.tensor([rows.shape[1]])

    def distribution(self, low: Tensor, high: Tensor) -> Distribution:  # noqa: ARG002
        """Every value once."""
        return Points(self.values, torch.ones_like(self.values))

    def magnitudes(self, most: Tensor) -> Distribution:  # noqa: ARG002
        """Every magnitude once."""
        return Points(self.values.abs().sort(1).values, torch.ones_like(self.values))


class Histogram(ExactModule):
    """Counts the values of a stream, of the whole tensor or of each channel, signs apart.

    A short stream is kept whole: while every batch has at most as many values per channel as there are slots,
    and all of them together that many different ones, the slots hold those values and how often each came.
    Beyond that they hold the counts of the bins of a `Layout`. Which of the two, the top and every count
    depend on the batches alone, not on their order, and never on which process saw them.

    Shapes:
        slots: int64 ``(C, 2 * num_slots)``. Whole: ascending entries ``order(value) << 32 | count``, unused
        ones the largest int64. Binned: the counts of the bins from zero up, first of positive values, then of
        negative ones.
        top: int64 ``(C,)``, biased exponent of the largest magnitude, at least the number of octaves.
        is_whole: bool ``(1,)``. total: int64 ``(1,)``, values seen per channel.

    Memory: 88 KB per tensor with 9 ``top_bits``; per channel 65 KB for up to 500 channels, then at most
    34 MB for all of them together, but not less than 416 bytes each.
    """

    slots: Tensor
    top: Tensor
    is_whole: Tensor
    total: Tensor

    def __init__(self, num_channels: int = 1, *, top_bits: int = 9) -> None:
        super().__init__()
        self.layout = choose_layout(num_channels, top_bits)
        self.num_channels = num_channels
        self.capacity = 2 * self.layout.num_slots
        self.register_buffer("slots", torch.full((num_channels, self.capacity), _EMPTY))
        self.register_buffer("top", torch.full((num_channels,), self.layout.num_octaves))
        self.register_buffer("is_whole", torch.ones(1, dtype=torch.bool))
        self.register_buffer("total", torch.zeros(1, dtype=torch.int64))

    def reset(self) -> None:
        """Forget everything."""
        self.slots.fill_(_EMPTY)
        self.top.fill_(self.layout.num_octaves)
        self.is_whole.fill_(True)
        self.total.zero_()

    @torch.no_grad()
    def add(self, x: Tensor, *, ch_axis: int = -1, magnitude: Tensor | None = None) -> None:
        """Count the values of ``x``, which are finite.

        Shapes:
            magnitude: ``(C,)``, the largest of each channel, where the caller has it already.
        """
        if magnitude is None:
            others = [axis for axis in range(x.dim()) if axis != ch_axis]
            magnitude = x.detach().float().abs().amax(others).reshape(-1)
        x = x.detach()
        count = x.numel() // self.num_channels
        if bool(self.is_whole) and count <= self.capacity:
            self._raise_top(_exponents(magnitude))
            self._take_entries((_order(channel_rows(x, ch_axis).float()) << _COUNT_BITS) | 1)
        else:
            self._become_binned()
            self._raise_top(_exponents(magnitude))
            self.slots += self._bin_tensor(x) if self.num_channels == 1 else self._bin_channels(x, ch_axis)
        self.total += count

    def merge(self, other: Histogram) -> None:
        """Become the histogram that has seen both streams; ``other`` stays as it is."""
        if bool(self.is_whole) and bool(other.is_whole):
            self._raise_top(other.top)
            self._take_entries(other.slots)
        else:
            self._become_binned()
            self._raise_top(other.top)
            self.slots += self._binned_slots_of(other)
        self.total += other.total

    def distribution(self, low: Tensor, high: Tensor) -> Distribution:
        """What is known of the stream, whose least and greatest values are ``low`` and ``high``, ``(C,)``."""
        return self._points() if bool(self.is_whole) else self._bins(low, high)

    def magnitudes(self, most: Tensor) -> Distribution:
        """The same without signs, ``most`` being the largest magnitudes, ``(C,)``; from zero up."""
        if bool(self.is_whole):
            points = self._points()
            values, order = points.values.abs().sort(1)
            return Points(values, points.counts.gather(1, order))
        unit = torch.exp2((self.top - _EXPONENT_BIAS).double())[:, None]
        edges = torch.cat((torch.zeros_like(unit), _tables(self.layout, self.slots.device).edges * unit), 1)
        counts = self.slots.view(self.num_channels, 2, -1).sum(1).double()
        return Bins(edges.minimum(most.double()[:, None] * (1 + _HAIR)), counts)

    def _points(self) -> Points:
        used = self.slots != _EMPTY
        width = max(1, int(used.sum(1).max()))
        entries, used = self.slots[:, :width], used[:, :width]
        values = torch.where(used, _value(entries >> _COUNT_BITS).double(), 0.0)
        return Points(values, torch.where(used, entries & ((1 << _COUNT_BITS) - 1), 0).double())

    def _bins(self, low: Tensor, high: Tensor) -> Bins:
        unit = torch.exp2((self.top - _EXPONENT_BIAS).double())[:, None]
        magnitudes = _tables(self.layout, self.slots.device).edges * unit
        positive, negative = self.slots.double().view(self.num_channels, 2, -1)[:, :, 1:].unbind(1)
        edges = torch.cat((-magnitudes.flip(1), magnitudes), 1)
        counts = torch.cat((negative.flip(1), torch.zeros_like(unit), positive), 1)
        return _with_ends(edges, counts, low.double()[:, None], high.double()[:, None])

    def _take_entries(self, entries: Tensor) -> None:
        """Add values with their counts to the whole stream, or turn to bins if they are too many."""
        entries = torch.cat((self.slots, entries), 1).sort(1).values
        keys = entries >> _COUNT_BITS
        is_first = torch.ones_like(keys, dtype=torch.bool)
        is_first[:, 1:] = keys[:, 1:] != keys[:, :-1]
        run = is_first.cumsum(1) - 1
        used = entries != _EMPTY
        counts = torch.where(used, entries & ((1 << _COUNT_BITS) - 1), 0)
        totals = torch.zeros_like(counts).scatter_add_(1, run, counts)
        if int((is_first & used).sum(1).max()) > self.capacity or int(totals.max()) >= 1 << 31:
            self.is_whole.fill_(False)
            self.slots.copy_(self._bin_entries(torch.where(used, keys, 0), counts))
            return
        merged = torch.full_like(entries, _EMPTY).scatter_(
            1, run, torch.where(used, keys << _COUNT_BITS, _EMPTY)
        )
        self.slots.copy_((merged | totals)[:, : self.capacity])

    def _become_binned(self) -> None:
        if not bool(self.is_whole):
            return
        points = self._points()
        self.is_whole.fill_(False)
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
        tables = _tables(self.layout, slots.device)
        cells = (tables.cell_of_slot - (octaves[:, None] << self.layout.top_bits)).clamp(min=0)
        target = tables.slot_of_cell[cells].long()
        counts = slots.view(self.num_channels, 2, -1)
        moved = torch.zeros_like(counts).scatter_add_(2, target[:, None].expand_as(counts), counts)
        return moved.view_as(slots)

    def _bin_entries(self, keys: Tensor, counts: Tensor) -> Tensor:
        values = _value(keys)
        slots = self._slots_of(values.view(torch.int32), self.top[:, None])
        empty = torch.zeros(self.num_channels, self.capacity, dtype=torch.int64, device=keys.device)
        return empty.scatter_add_(1, slots.long(), counts)

    def _bin_tensor(self, x: Tensor) -> Tensor:
        """The counts of one batch, per tensor: count every leading pattern, then sort patterns into bins."""
        bits, octaves = self.layout.top_bits, self.layout.num_octaves
        signs = _pattern_counts(in_memory_order(x).reshape(-1), bits)
        first = (int(self.top) - octaves + 1) << bits
        window = signs[:, first : first + (octaves << bits)]
        cells = torch.cat((signs[:, :first].sum(1, keepdim=True), window), 1)
        binned = torch.zeros(2, self.layout.num_slots, dtype=torch.int64, device=x.device)
        return binned.index_add_(1, _tables(self.layout, x.device).slot_of_cell, cells).view(1, -1)

    def _bin_channels(self, x: Tensor, ch_axis: int) -> Tensor:
        """The counts of one batch, per channel."""
        shape = [-1 if axis == ch_axis else 1 for axis in range(x.dim())]
        bits = x.float().view(torch.int32)
        index = self._slots_of(bits, self.top.view(shape))
        start = torch.arange(self.num_channels, dtype=torch.int32, device=x.device) * self.capacity
        index += start.view(shape)
        flat = in_memory_order(index).reshape(-1)
        return torch.bincount(flat, minlength=self.slots.numel()).view_as(self.slots)

    def _slots_of(self, bits: Tensor, top: Tensor) -> Tensor:
        """The slot, int32, of each float32 given by its bits, under a top that broadcasts over them."""
        tables = _tables(self.layout, bits.device)
        first = ((top - self.layout.num_octaves + 1) << self.layout.top_bits).int() - 1
        cells = (bits & 0x7FFFFFFF) >> (_MANTISSA - self.layout.top_bits)
        cells = (cells - first).clamp_(min=0)
        slots = tables.slot_of_cell.index_select(0, cells.reshape(-1)).view(cells.shape)
        return slots.add_((bits < 0).int(), alpha=self.layout.num_slots)


def _with_ends(edges: Tensor, counts: Tensor, low: Tensor, high: Tensor) -> Bins:
    """Cut the bins off at the least and the greatest value, which are known exactly and cost the most.

    Each of the two is one value in a bin of its own, a hair wide. What else sits right on an end joins it.
    """
    for end in (low, high):
        # A bin owns its edge on the side of zero.
        right, left = (torch.searchsorted(edges, end, right=side) - 1 for side in (True, False))
        at = torch.where(end >= 0, right, left).clamp(0, counts.shape[1] - 1)
        counts = counts.scatter_add(1, at, -counts.gather(1, at).clamp(max=1))
    edges = edges.clamp(low, high)
    is_flat = edges.diff(dim=1) == 0
    flat = torch.where(is_flat, counts, 0.0)
    below = torch.where(edges[:, 1:] <= low, flat, 0.0).sum(1, keepdim=True)
    above = flat.sum(1, keepdim=True) - below
    edges = torch.cat((low - low.abs() * _HAIR, edges, high + high.abs() * _HAIR), 1)
    return Bins(edges, torch.cat((1 + below, torch.where(is_flat, 0.0, counts), 1 + above), 1))


def channel_rows(x: Tensor, ch_axis: int) -> Tensor:
    """``x`` as one row per channel, or one row altogether (``ch_axis`` < 0)."""
    return x.reshape(1, -1) if ch_axis < 0 else x.movedim(ch_axis, 0).reshape(x.shape[ch_axis], -1)


def in_memory_order(x: Tensor) -> Tensor:
    """``x`` with its axes permuted so that memory is read forward: without a copy where it is dense."""
    if torch.compiler.is_compiling() or x.is_contiguous():
        return x
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))


def _pattern_counts(values: Tensor, num_bits: int) -> Tensor:
    """How often each exponent with ``num_bits`` bits of mantissa occurs, int64 ``(2, patterns)`` by sign."""
    patterns = 1 << (9 + num_bits)
    counts = torch.zeros(patterns, dtype=torch.int64, device=values.device)
    block = max(_BLOCK, 4 * patterns)
    index = torch.empty(min(block, values.numel()), dtype=torch.int32, device=values.device)
    for start in range(0, values.numel(), block):
        bits = values[start : start + block].float().view(torch.int32)
        leading = torch.bitwise_right_shift(bits, _MANTISSA - num_bits, out=index[: bits.numel()])
        # The shift keeps the sign: without it, the pattern of a negative float is its place after the others.
        found = torch.bincount(leading.bitwise_and_(patterns - 1))
        counts[: found.numel()] += found
    return counts.view(2, -1)


def _exponents(magnitude: Tensor) -> Tensor:
    return (magnitude.float().contiguous().view(torch.int32) >> _MANTISSA).long()


def _order(values: Tensor) -> Tensor:
    """int64 numbers in the order of float32 values; -0.0 counts as 0.0."""
    bits = (values + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()


def _value(order: Tensor) -> Tensor:
    bits = order.int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)
