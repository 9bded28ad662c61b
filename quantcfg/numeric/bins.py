"""Bins for floats: their leading bits, shifted right, are a logarithmic bin number.

Such bins are known before any data, so counts are exact, nothing is read twice, and merging is addition.
Nothing here waits for the device or has a shape that depends on values.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

EXPONENT_BIAS = 127
MANTISSA = 23
# Elements counted at a time: the index of a block stays in the cache, and no large temporary is mapped.
_BLOCK, _HOST_BLOCK = 1 << 19, 1 << 20
# Elements for which a thread gets a table of its own.
_PER_THREAD = 1 << 20
# Octaves whose bins matter to a grid: the finest of them has 16 steps to the octave of the largest value.
_FINE_OCTAVES = 16
# Counts kept for all channels together, unless that leaves less than the coarsest layout per channel.
_MOST_COUNTS = 1 << 22


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
        last_cell: int64 ``(num_slots - 1,)``, the highest cell of each slot from slot 1 on, less one.
        first_slot: int64, where the bins begin that matter to a grid, and the end: places in ``edges``.
        edges: float64 ``(num_slots,)``, from the lower edge of slot 1 on, in units of 2**top; the last is 2.
    """

    slot_of_cell: Tensor
    cell_of_slot: Tensor
    last_cell: Tensor
    first_slot: Tensor
    edges: Tensor


def tables(layout: Layout, like: Tensor) -> Tables:
    """The tables of a layout where ``like`` is; made once, but for tensors that only stand for others."""
    return _cached(layout, like.device) if type(like) is Tensor else _make(layout, like.device)


def _make(layout: Layout, device: torch.device) -> Tables:
    octaves = torch.arange(layout.num_octaves - 1, -1, -1, device=device)
    bits = (layout.top_bits - octaves).clamp(min=layout.least_bits)
    sizes = torch.ones_like(bits) << bits
    starts = 1 + sizes.cumsum(0) - sizes
    group, place = _split(torch.arange(layout.num_octaves << layout.top_bits, device=device), layout)
    slots = starts.index_select(0, group) + (place >> (layout.top_bits - bits).index_select(0, group))
    slot_of_cell = torch.nn.functional.pad(slots, (1, 0)).int()
    cell_of_slot = torch.searchsorted(slot_of_cell, torch.arange(layout.num_slots, device=device))
    group, place = _split(cell_of_slot[1:] - 1, layout)
    units = torch.exp2(-octaves.double()).index_select(0, group)
    edges = units * (1 + place.double() / (1 << layout.top_bits))
    last_cell = torch.nn.functional.pad(cell_of_slot[2:], (0, 1), value=slot_of_cell.numel()) - 2
    num_low = max(0, layout.num_octaves - _FINE_OCTAVES) << layout.least_bits
    low = torch.arange(0, num_low, max(1, (1 << layout.least_bits) // 8), device=device)
    first_slot = torch.cat((low, torch.arange(num_low, layout.num_slots, device=device)))
    edges = torch.nn.functional.pad(edges, (0, 1), value=2.0)
    return Tables(slot_of_cell, cell_of_slot, last_cell, first_slot, edges)


_cached = lru_cache(maxsize=32)(_make)


def _split(cells: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Which octave from the lowest up, and which place in it."""
    return cells >> layout.top_bits, cells & ((1 << layout.top_bits) - 1)


def choose_layout(num_channels: int, top_bits: int) -> Layout:
    """The layout for that many channels: one tensor may have all bins it likes, channels share a budget.

    Per tensor 40 octaves of at least 128 bins. Per channel 24 octaves, 2,048 bins in the highest for up to
    498 channels, and half as many for every doubling beyond.
    """
    if num_channels == 1:
        return Layout(top_bits, min(7, top_bits), 40)
    layouts = [Layout(bits, min(3, bits // 2), 24) for bits in range(max(11, top_bits), 0, -1)]
    fits = (layout for layout in layouts if 2 * layout.num_slots * num_channels <= _MOST_COUNTS)
    return next(fits, layouts[-1])


def count_bins(x: Tensor, ch_axis: int, top: Tensor, layout: Layout, *, may_wait: bool = False) -> Tensor:
    """How many values of ``x`` lie in each bin: of positive values from zero up, then of negative ones.

    Shapes:
        top: int64 ``(C,)``, see `Layout`; the result is int64 ``(C, 2 * num_slots)``.
    """
    if top.numel() > 1:
        return with_one_zero(_count_channels(x, ch_axis, top, layout))
    values = in_memory_order(x).reshape(-1)
    first = (top - layout.num_octaves + 1) << layout.top_bits
    window = _count_window(values, int(first) if may_wait else first, layout)
    # Slots are neighbouring cells, so their counts are differences of running sums.
    up_to_slot = window.cumsum(1).index_select(1, tables(layout, x).last_cell)
    below = window.new_zeros(2, 1)
    slots = torch.cat((below, up_to_slot.diff(dim=1, prepend=below)), 1)
    slots[0, 0] = values.numel() - window.sum()
    return slots.view(1, -1)


def with_one_zero(slots: Tensor) -> Tensor:
    """``slots``, changed: what counts as 0 has no sign, as -0.0 has none where values are kept whole."""
    positive, negative = slots.view(len(slots), 2, -1)[:, :, 0].unbind(1)
    positive += negative
    negative.zero_()
    return slots


def _count_window(values: Tensor, first: int | Tensor, layout: Layout) -> Tensor:
    """How many positive and how many negative values lie in each cell, int64 ``(2, cells)``.

    Rows of a table are counted side by side, one thread each. ``first`` is the pattern of the lowest cell,
    exponent and ``top_bits`` bits of the mantissa; where it may be known here, there is less to clear.
    """
    bits, cells = layout.top_bits, layout.num_octaves << layout.top_bits
    rows = _num_rows(values)
    if isinstance(first, int) and rows == 1 and values.is_cpu:
        return _count_on_host(values, bits).narrow(1, first, cells)
    dtype = torch.int32 if values.numel() < 1 << 31 else torch.int64  # half the cache misses
    counts = torch.empty(rows, 2, 1 << (8 + bits), dtype=dtype, device=values.device)
    if isinstance(first, int):
        window = counts.narrow(2, first, cells).zero_()  # nobody looks at the others
        _count_patterns(values, bits, counts.view(rows, -1))
        return window.sum(0)
    _count_patterns(values, bits, counts.zero_().view(rows, -1))
    return counts.index_select(2, first + torch.arange(cells, device=values.device)).sum(0)


def _count_patterns(values: Tensor, num_bits: int, counts: Tensor) -> None:
    """Add to ``counts``, ``(rows, patterns)``, how often each pattern occurs, negative values last."""
    one = counts.new_ones(1, 1)
    for leading in _leading_bits(values, num_bits, torch.int64, _BLOCK if values.is_cpu else values.numel()):
        for part in _in_rows(leading, len(counts)):
            counts[: len(part)].scatter_add_(1, part, one.expand_as(part))


def _count_on_host(values: Tensor, num_bits: int) -> Tensor:
    """The patterns as ``(2, patterns)``, on a CPU by one thread: faster than one row of `_count_patterns`."""
    patterns = 1 << (9 + num_bits)
    blocks = _leading_bits(values, num_bits, torch.int32, _HOST_BLOCK)
    counts = torch.bincount(next(blocks), minlength=patterns)
    for leading in blocks:
        counts += torch.bincount(leading, minlength=patterns)
    return counts.view(2, -1)


def _leading_bits(values: Tensor, num_bits: int, dtype: torch.dtype, block: int) -> Iterator[Tensor]:
    """The patterns of ``values``, a block at a time, all in one buffer."""
    index = _scratch(min(block, values.numel()), dtype, values)
    for part in torch.split(values, max(1, block)):
        bits, into = part.float().view(torch.int32), index[: part.numel()]
        torch.bitwise_right_shift(bits, MANTISSA - num_bits, out=into)
        # The shift keeps the sign: without it, the pattern of a negative float is its place after the others.
        yield into.bitwise_and_((1 << (9 + num_bits)) - 1)


_kept = threading.local()


def _scratch(size: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Room for ``size`` numbers; each thread keeps its own, for fresh memory costs more than its use."""
    if not like.is_cpu or type(like) is not Tensor:
        return torch.empty(size, dtype=dtype, device=like.device)
    found: Tensor | None = getattr(_kept, "room", None)
    if found is None:
        with torch.inference_mode(False):  # or nothing but inference could write to it
            found = _kept.room = torch.empty(_HOST_BLOCK, dtype=torch.int32, device="cpu")
    return found.view(dtype)[:size]


def _num_rows(values: Tensor) -> int:
    """A GPU adds to one table with all it has; small tensors do not pay for a table for each thread."""
    return max(1, min(torch.get_num_threads(), values.numel() // _PER_THREAD)) if values.is_cpu else 1


def _in_rows(index: Tensor, rows: int) -> list[Tensor]:
    length = index.numel() // rows
    whole, rest = index[: rows * length].view(rows, length), index[rows * length :].view(1, -1)
    return [part for part in (whole, rest) if part.numel()]


def _count_channels(x: Tensor, ch_axis: int, top: Tensor, layout: Layout) -> Tensor:
    shape = [-1 if axis == ch_axis else 1 for axis in range(x.dim())]
    index = channel_rows(slots_of(x.float(), top.view(shape), layout), ch_axis)
    counts = torch.zeros(top.numel(), 2 * layout.num_slots, dtype=torch.int64, device=x.device)
    return counts.scatter_add_(1, index, counts.new_ones(1, 1).expand_as(index))


def slots_of(values: Tensor, top: Tensor, layout: Layout) -> Tensor:
    """The slot, int32, of each float32 value under a top that broadcasts over them."""
    bits = values.view(torch.int32)
    first = ((top - layout.num_octaves + 1) << layout.top_bits).int() - 1
    cells = (bits & 0x7FFFFFFF) >> (MANTISSA - layout.top_bits)
    cells = (cells - first).clamp_(0, layout.num_octaves << layout.top_bits)  # above the top is only NaN
    slots = tables(layout, values).slot_of_cell.index_select(0, cells.reshape(-1)).view(cells.shape)
    return slots.add_((bits < 0).int(), alpha=layout.num_slots)


def exponents(magnitude: Tensor) -> Tensor:
    """The biased exponents of float32 magnitudes, int64."""
    return (magnitude.float().contiguous().view(torch.int32) >> MANTISSA).long()


def channel_rows(x: Tensor, ch_axis: int) -> Tensor:
    """``x`` as one row per channel, or one row altogether (``ch_axis`` < 0)."""
    return x.reshape(1, -1) if ch_axis < 0 else x.movedim(ch_axis, 0).reshape(x.shape[ch_axis], -1)


def in_memory_order(x: Tensor) -> Tensor:
    """``x`` with its axes permuted so that memory is read forward: without a copy where it is dense."""
    if torch.compiler.is_compiling() or x.is_contiguous():
        return x
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))
