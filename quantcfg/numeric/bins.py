"""Bins for floats: their leading bits, shifted right, are a logarithmic bin number.

Such bins are known before any data, so counts are exact, nothing is read twice, and merging is addition.
Nothing here waits for the device or has a shape that depends on values.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

EXPONENT_BIAS = 127
MANTISSA = 23
# Octaves whose bins matter to a grid: the finest of them has 16 steps to the octave of the largest value.
_FINE_OCTAVES = 16
# Channels up to which each has all bins.
MOST_CHANNELS = 1 << 13


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
    """The layout for that many channels: one tensor may have all bins it likes, channels are to be frugal.

    Per tensor 32 octaves, of ``2**top_bits`` bins where a grid has steps as wide as bins, of 128 below. Per
    channel 24 octaves: the highest three of ``2**top_bits`` bins, 1,024 at least, and each below of half as
    many, down to 8.
    Beyond 8,192 channels each has half as many bins for every doubling.
    """
    if num_channels == 1:
        least = min(7, top_bits)
        return Layout((top_bits,) * (top_bits - least + 1) + (least,) * (31 - top_bits + least))
    layouts = [
        Layout(tuple(max(bits - max(0, octave - 2), min(3, bits // 2)) for octave in range(24)))
        for bits in range(max(10, top_bits), 0, -1)
    ]
    most = MOST_CHANNELS * layouts[0].num_slots
    return next((layout for layout in layouts if layout.num_slots * num_channels <= most), layouts[-1])


@lru_cache(maxsize=8)
def _cached_slots(layout: Layout, top: int, device: torch.device) -> Tensor:
    return _make_slots(layout, top, device)


def slots_of_patterns(layout: Layout, top: int, like: Tensor) -> Tensor:
    """The slot of each pattern, sign, exponent and ``top_bits`` of the mantissa, under a ``top``: int64."""
    find = _cached_slots if type(like) is Tensor else _make_slots
    return find(layout, top, like.device)


def _make_slots(layout: Layout, top: int, device: torch.device) -> Tensor:
    patterns = torch.arange(1 << (9 + layout.top_bits), device=device) << (MANTISSA - layout.top_bits)
    return slots_of(patterns.int().view(torch.float32), torch.full_like(patterns, top), layout).long()


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
