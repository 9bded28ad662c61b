"""Bins for floats: their leading bits, shifted right, are a logarithmic bin number.

Such bins are known before any data, so counts are exact, nothing is read twice, and merging is addition.
Nothing here waits for the device or has a shape that depends on values.
"""

from __future__ import annotations

import itertools
import threading
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from quantcfg.numeric.host import is_on_host

EXPONENT_BIAS = 127
MANTISSA = 23
# Elements counted at a time: their keys stay in the cache.
_BLOCK = 1 << 18
# Elements for which a thread gets a table of its own, and those whose counts surely fit in int32.
_PER_THREAD, _MOST = 1 << 14, 1 << 30
# Octaves whose bins matter to a grid: the finest of them has 16 steps to the octave of the largest value.
_FINE_OCTAVES = 16
# Counts kept for all channels together, unless that leaves less than the coarsest layout per channel.
_MOST_COUNTS = 1 << 22


class Layout(NamedTuple):
    """Which bins a histogram has, relative to the power of two below its largest magnitude (the top).

    Octave o holds the magnitudes [2**(top - o), 2**(top - o + 1)) in 2**bits[o] bins of equal width. None has
    more than the one above it, so that a bin is a union of those that it would have in a higher octave, and
    the top can rise without an error. Magnitudes under the last octave count as 0.
    """

    bits: tuple[int, ...]

    @property
    def num_octaves(self) -> int:
        """How many powers of two are told apart."""
        return len(self.bits)

    @property
    def top_bits(self) -> int:
        """How many bits of the mantissa tell the bins of the highest octave apart."""
        return self.bits[0]

    @property
    def num_cells(self) -> int:
        """Bins per sign, zero left out, if all octaves had as many as the highest."""
        return self.num_octaves << self.top_bits

    @property
    def num_slots(self) -> int:
        """Bins per sign, the one of zero included."""
        return 1 + sum(1 << bits for bits in self.bits)


class Tables(NamedTuple):
    """A layout as tensors. A cell is as wide as the narrowest bin of its octave could be.

    Shapes:
        slot_of_cell: int32 ``(1 + num_octaves * 2**top_bits,)``, ascending; cell and slot 0 are zero.
        cell_of_slot: int64 ``(num_slots,)``, the lowest cell of each slot.
        first_slot: int64, where the bins begin that matter to a grid, and the end: places in ``edges``.
        edges: float64 ``(num_slots,)``, from the lower edge of slot 1 on, in units of 2**top; the last is 2.
    """

    slot_of_cell: Tensor
    cell_of_slot: Tensor
    first_slot: Tensor
    edges: Tensor


def tables(layout: Layout, like: Tensor) -> Tables:
    """The tables of a layout where ``like`` is; made once, but for tensors that only stand for others."""
    return _cached(layout, like.device) if type(like) is Tensor else _make(layout, like.device)


def _make(layout: Layout, device: torch.device) -> Tables:
    octaves = torch.arange(layout.num_octaves - 1, -1, -1, device=device)
    bits = torch.tensor(layout.bits[::-1], device=device)
    sizes = torch.ones_like(bits) << bits
    starts = 1 + sizes.cumsum(0) - sizes
    group, place = _split(torch.arange(layout.num_cells, device=device), layout)
    slots = starts.index_select(0, group) + (place >> (layout.top_bits - bits).index_select(0, group))
    slot_of_cell = torch.nn.functional.pad(slots, (1, 0)).int()
    cell_of_slot = torch.searchsorted(slot_of_cell, torch.arange(layout.num_slots, device=device))
    group, place = _split(cell_of_slot[1:] - 1, layout)
    units = torch.exp2(-octaves.double()).index_select(0, group)
    edges = units * (1 + place.double() / (1 << layout.top_bits))
    least_bits = layout.bits[-1]
    num_low = max(0, layout.num_octaves - _FINE_OCTAVES) << least_bits
    low = torch.arange(0, num_low, max(1, (1 << least_bits) // 8), device=device)
    first_slot = torch.cat((low, torch.arange(num_low, layout.num_slots, device=device)))
    edges = torch.nn.functional.pad(edges, (0, 1), value=2.0)
    return Tables(slot_of_cell, cell_of_slot, first_slot, edges)


_cached = lru_cache(maxsize=32)(_make)


def _split(cells: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Which octave from the lowest up, and which place in it."""
    return cells >> layout.top_bits, cells & ((1 << layout.top_bits) - 1)


def choose_layout(num_channels: int, top_bits: int) -> Layout:
    """The layout for that many channels: one tensor may have all bins it likes, channels share a budget.

    Per tensor 32 octaves, of ``2**top_bits`` bins where a grid has steps as wide as bins, of 128 below. Per
    channel 24 octaves, 2,048 bins in the highest for up to 498 channels, and half as many for every doubling
    beyond.
    """
    if num_channels == 1:
        least = min(7, top_bits)
        return Layout((top_bits,) * (top_bits - least + 1) + (least,) * (31 - top_bits + least))
    layouts = [
        Layout(tuple(max(bits - octave, min(3, bits // 2)) for octave in range(24)))
        for bits in range(max(11, top_bits), 0, -1)
    ]
    fits = (layout for layout in layouts if 2 * layout.num_slots * num_channels <= _MOST_COUNTS)
    return next(fits, layouts[-1])


def add_counts(slots: Tensor, x: Tensor, ch_axis: int, top: Tensor, layout: Layout) -> None:
    """Count the values of ``x``: positive ones in bins from zero up, then negative ones.

    What is too small for the bins is left out: of as many values as there are, the rest counts as 0.

    Shapes:
        slots: int64 ``(C, 2 * num_slots)``, added to. top: int64 ``(C,)``, see `Layout`.
    """
    if top.numel() > 1:
        slots += without_zero(_count_channels(x, ch_axis, top, layout))
        return
    first = (top - layout.num_octaves + 1) << layout.top_bits
    cells = first + torch.arange(layout.num_cells, device=x.device)
    for part in torch.split(in_memory_order(x).reshape(-1), _MOST):
        patterns = _patterns_on_host(part, layout) if is_on_host(part) else _patterns(part, layout)
        _add_cells(slots, patterns.index_select(2, cells).sum(0, dtype=patterns.dtype), layout)


def add_counts_on_host(slots: Tensor, values: Tensor, top: int, layout: Layout) -> None:
    """The same for values in one row in the memory of the host, where ``top`` may be asked for."""
    first = (top - layout.num_octaves + 1) << layout.top_bits
    for part in torch.split(values, _MOST):
        window = _tables_of_threads(part, layout).narrow(2, first, layout.num_cells).zero_()
        _count_on_host(part, layout)  # more than the window, but nobody looks at that
        _add_cells(slots, window.sum(0, dtype=window.dtype), layout)


def without_zero(slots: Tensor) -> Tensor:
    """``slots`` without what they hold of values that count as 0, changed in place."""
    slots.view(len(slots), 2, -1)[:, :, 0].zero_()
    return slots


def _add_cells(slots: Tensor, cells: Tensor, layout: Layout) -> None:
    """Add the counts of cells, ``(2, num_cells)``, to those of the slots that they make up."""
    cell, slot = 0, 1
    for bits, octaves in itertools.groupby(reversed(layout.bits)):
        num_slots = len(list(octaves)) << bits
        per_slot = 1 << (layout.top_bits - bits)
        part = cells.narrow(1, cell, num_slots * per_slot)
        if per_slot > 1:
            part = part.view(2, num_slots, per_slot).sum(2, dtype=cells.dtype)
        slots.view(2, -1).narrow(1, slot, num_slots).add_(part)
        cell, slot = cell + num_slots * per_slot, slot + num_slots


def _patterns(values: Tensor, layout: Layout) -> Tensor:
    """How often each pattern occurs, exponent and then mantissa, int64 ``(1, 2, patterns)``, by sign."""
    counts = torch.zeros(1 << (9 + layout.top_bits), dtype=torch.int64, device=values.device)
    bits = values.float().view(torch.int32) >> (MANTISSA - layout.top_bits)
    # The shift keeps the sign: without it, the pattern of a negative float is its place after the others.
    keys = bits.bitwise_and_(counts.numel() - 1).long()
    return counts.scatter_add_(0, keys, counts.new_ones(1).expand_as(keys)).view(1, 2, -1)


def _patterns_on_host(values: Tensor, layout: Layout) -> Tensor:
    """The same by thread, int32, for what one batch of training may hold."""
    counts = _tables_of_threads(values, layout).zero_()
    _count_on_host(values, layout)
    return counts


def _count_on_host(values: Tensor, layout: Layout) -> None:
    """Add how often each pattern occurs to `_tables_of_threads`."""
    counts = _tables_of_threads(values, layout).flatten(1)
    keys, ones = _workspace()
    for part in _in_rows(values, len(counts)):
        # Backwards: the end is what the search for the range has left in the caches.
        for block in reversed(torch.split(part, _BLOCK // len(part), 1)):
            # As unsigned numbers: the pattern of a negative float is its place after the others.
            patterns = keys[: block.numel()].view(block.shape).copy_(block.float().view(torch.uint32))
            patterns.bitwise_right_shift_(MANTISSA - layout.top_bits)
            # A whole tensor of ones: one that is expanded takes twice as long.
            counts[: len(block)].scatter_add_(1, patterns, ones[: block.numel()].view_as(patterns))


_kept = threading.local()


def _workspace() -> tuple[Tensor, Tensor]:
    """Room for the int64 keys of a block, and int32 ones. Fresh memory would cost more than its use."""
    if not hasattr(_kept, "workspace"):
        with torch.inference_mode(False):  # or nothing but inference could write to it
            keys = torch.empty(_BLOCK, dtype=torch.int64, device="cpu")
            _kept.workspace = keys, torch.ones(_BLOCK, dtype=torch.int32, device="cpu")
    workspace: tuple[Tensor, Tensor] = _kept.workspace
    return workspace


def _tables_of_threads(values: Tensor, layout: Layout) -> Tensor:
    """int32 tables of all patterns, ``(rows, 2, patterns)``, of which nobody looks but at a window."""
    rows = max(1, min(torch.get_num_threads(), values.numel() // max(_PER_THREAD, 2 * layout.num_cells)))
    size = rows << (9 + layout.top_bits)
    if not hasattr(_kept, "tables") or _kept.tables.numel() < size:
        with torch.inference_mode(False):
            _kept.tables = torch.empty(size, dtype=torch.int32, device="cpu")
    found: Tensor = _kept.tables
    return found[:size].view(rows, 2, -1)


def _in_rows(values: Tensor, rows: int) -> list[Tensor]:
    length = values.numel() // rows
    whole, rest = values[: rows * length].view(rows, length), values[rows * length :].view(1, -1)
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
    cells = (cells - first).clamp_(0, layout.num_cells)  # above the top is only NaN
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
