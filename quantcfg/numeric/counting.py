"""Counting values in the bins of a layout, a block at a time: what is written is read again in the cache."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from quantcfg.numeric.bins import EXPONENT_BIAS, MANTISSA, Layout, in_memory_order, slots_of_patterns
from quantcfg.numeric.host import is_on_host

# Elements counted at a time: their keys stay in the cache.
_BLOCK = 1 << 18
# Elements that are worth a table of patterns of their own, and those whose counts surely fit in int32.
_PER_TABLE, _MOST = 1 << 15, 1 << 30
# Channels counted at a time: neighbours in memory, they make a line of the cache.
_CHANNELS = 16
# The top that all channels are scaled to: the factor is a normal float whatever theirs is.
_COMMON_TOP = EXPONENT_BIAS + 1


def add_counts(slots: Tensor, x: Tensor, ch_axis: int, top: Tensor, layout: Layout) -> None:
    """Count the values of ``x``: positive ones in bins from zero up, then negative ones.

    What is too small for the bins is left out: of as many values as there are, the rest counts as 0.

    Shapes:
        slots: int64 or int32 ``(C, 2 * num_slots)``, added to. top: int64 ``(C,)``, see `Layout`.
    """
    if top.numel() > 1:
        _add_channels(slots, x.movedim(ch_axis, 0), top, layout)
        without_zero(slots)
        return
    first = (top - layout.num_octaves + 1) << layout.top_bits
    cells = first + torch.arange(layout.num_cells, device=x.device)
    for part in torch.split(in_memory_order(x).reshape(-1), _MOST):
        patterns = _patterns_on_host(part, layout) if is_on_host(part) else _patterns(part, layout)
        _add_cells(slots, patterns.index_select(2, cells).sum(0, True, dtype=patterns.dtype), layout)


def add_counts_on_host(slots: Tensor, values: Tensor, top: int, layout: Layout) -> None:
    """The same for values in one row in the memory of the host, where ``top`` may be asked for."""
    if values.numel() < _PER_TABLE:
        _add_channels(slots, values[None], torch.full((1,), top, device="cpu"), layout)
        without_zero(slots)
        return
    first = (top - layout.num_octaves + 1) << layout.top_bits
    for part in torch.split(values, _MOST):
        counts = _tables_of_threads(part.numel(), layout)
        window = counts.narrow(2, first, layout.num_cells).zero_()
        _count_on_host(part, counts, layout)  # more than the window, but nobody looks at that
        _add_cells(slots, window.sum(0, True, dtype=window.dtype), layout)


def without_zero(slots: Tensor) -> Tensor:
    """``slots`` without what they hold of values that count as 0, changed in place."""
    slots.view(len(slots), 2, -1)[:, :, 0].zero_()
    return slots


def _add_cells(slots: Tensor, cells: Tensor, layout: Layout) -> None:
    """Add the counts of cells, ``(C, 2, num_cells)``, to those of the slots that they make up."""
    slots, cell, slot = slots.view(len(slots), 2, -1), 0, 1
    for bits, octaves in itertools.groupby(reversed(layout.bits)):
        num_slots = len(list(octaves)) << bits
        per_slot = 1 << (layout.top_bits - bits)
        part = cells.narrow(2, cell, num_slots * per_slot)
        if per_slot > 1:
            part = part.view(*part.shape[:2], num_slots, per_slot).sum(3, dtype=cells.dtype)
        slots.narrow(2, slot, num_slots).add_(part)
        cell, slot = cell + num_slots * per_slot, slot + num_slots


def _patterns(values: Tensor, layout: Layout) -> Tensor:
    """How often each pattern occurs, exponent and then mantissa, int64 ``(1, 2, patterns)``, by sign."""
    counts = torch.zeros(1 << (9 + layout.top_bits), dtype=torch.int64, device=values.device)
    keys = _keys(values.float(), layout)
    return counts.scatter_add_(0, keys, counts.new_ones(1).expand_as(keys)).view(1, 2, -1)


def _keys(values: Tensor, layout: Layout) -> Tensor:
    """The pattern of each float32 value, int64: a negative one is its place after the others."""
    # The shift keeps the sign.
    bits = values.view(torch.int32) >> (MANTISSA - layout.top_bits)
    return bits.bitwise_and_((1 << (9 + layout.top_bits)) - 1).long()


def _keys_on_host(values: Tensor, layout: Layout, out: Tensor) -> Tensor:
    """The same, written to the first elements of ``out``."""
    keys = out[: values.numel()].view(values.shape).copy_(values.view(torch.uint32))
    return keys.bitwise_right_shift_(MANTISSA - layout.top_bits)


def _patterns_on_host(values: Tensor, layout: Layout) -> Tensor:
    """What `_patterns` counts by thread, int32, for what one batch of training may hold."""
    counts = _tables_of_threads(values.numel(), layout).zero_()
    _count_on_host(values, counts, layout)
    return counts


def _count_on_host(values: Tensor, counts: Tensor, layout: Layout) -> None:
    """Add how often each pattern occurs to ``counts``, which are `_tables_of_threads`."""
    counts, room = counts.flatten(1), _room()
    for part in _in_rows(values, len(counts)):
        # Backwards: the end is what the search for the range has left in the caches.
        for block in reversed(torch.split(part, _BLOCK // len(part), 1)):
            keys = _keys_on_host(block.float(), layout, room.keys)
            # A whole tensor of ones: one that is expanded takes twice as long.
            counts[: len(block)].scatter_add_(1, keys, room.ones[: block.numel()].view_as(keys))


def _in_rows(values: Tensor, rows: int) -> list[Tensor]:
    length = values.numel() // rows
    whole, rest = values[: rows * length].view(rows, length), values[rows * length :].view(1, -1)
    return [part for part in (whole, rest) if part.numel()]


def _add_channels(slots: Tensor, rows: Tensor, top: Tensor, layout: Layout) -> None:
    """Count each channel in its row of ``slots``, and what is too small for the bins nowhere or as zero.

    Scaled by powers of two, which is exact, all channels have the same top.
    """
    exponent = EXPONENT_BIAS + _COMMON_TOP - top
    factor = (exponent << MANTISSA).int().view(torch.float32).view(-1, *[1] * (rows.dim() - 1))
    if not is_on_host(rows):
        _add_slots(slots, _keys((rows * factor).reshape(len(rows), -1), layout), layout)
        return
    if _PER_TABLE <= rows.numel() // len(rows) <= _MOST:
        for first in range(0, len(rows), _CHANNELS):
            channels = slice(first, first + _CHANNELS)
            _add_by_tables(slots[channels], rows[channels], factor[channels], layout)
        return
    for first, part in _blocks(rows):
        channels = slice(first, first + len(part))
        _add_slots(slots[channels], _scaled_keys(part, factor[channels], layout), layout)


def _add_by_tables(slots: Tensor, rows: Tensor, factor: Tensor, layout: Layout) -> None:
    """Count the values of a few channels, many of each, in a table of all patterns for each."""
    first = (_COMMON_TOP - layout.num_octaves + 1) << layout.top_bits
    counts = _tables(len(rows), layout)
    window = counts.narrow(2, first, layout.num_cells).zero_()
    for _, part in _blocks(rows):  # which are too few to be divided
        keys = _scaled_keys(part, factor, layout)
        counts.flatten(1).scatter_add_(1, keys, _room().ones[: keys.numel()].view_as(keys))
    _add_cells(slots, window, layout)


def _add_slots(slots: Tensor, keys: Tensor, layout: Layout) -> None:
    """Count patterns, ``(C, V)``, in the slots that one table for all channels names."""
    slot_of_pattern = slots_of_patterns(layout, _COMMON_TOP, keys)
    found = slot_of_pattern.expand(len(keys), -1).gather(1, keys)
    slots.scatter_add_(1, found, slots.new_ones(1, 1).expand_as(found))


def _scaled_keys(part: Tensor, factor: Tensor, layout: Layout) -> Tensor:
    """`_keys` of some channels in the memory of the host, ``(C, V)``."""
    room = _room()
    scaled = torch.mul(part, factor, out=room.floats[: part.numel()].view(part.shape))
    return _keys_on_host(scaled.view(len(part), -1), layout, room.keys)


def _blocks(rows: Tensor, first: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Parts of ``rows`` small enough for the cache, each with the number of its first row."""
    if rows.numel() <= _BLOCK:
        yield first, rows
        return
    others = range(1, rows.dim())
    # The outermost axis in memory, so that what is read together lies together.
    axis = 0 if len(rows) > _CHANNELS else max(others, key=lambda a: (rows.shape[a] > 1, rows.stride(a)))
    middle = rows.shape[axis] // 2
    yield from _blocks(rows.narrow(axis, 0, middle), first)
    rest = rows.narrow(axis, middle, rows.shape[axis] - middle)
    yield from _blocks(rest, first + middle if axis == 0 else first)


class _Room(NamedTuple):
    """Memory for what is known of a block. Fresh memory would cost more than its use."""

    floats: Tensor
    keys: Tensor
    ones: Tensor


_kept = threading.local()


def _room() -> _Room:
    if not hasattr(_kept, "room"):
        with torch.inference_mode(False):  # or nothing but inference could write to it
            _kept.room = _Room(
                torch.empty(_BLOCK, dtype=torch.float32, device="cpu"),
                torch.empty(_BLOCK, dtype=torch.int64, device="cpu"),
                torch.ones(_BLOCK, dtype=torch.int32, device="cpu"),
            )
    room: _Room = _kept.room
    return room


def _tables_of_threads(num_values: int, layout: Layout) -> Tensor:
    """As many `_tables` as threads are worth it."""
    worth = num_values // max(_PER_TABLE, 2 * layout.num_cells)
    return _tables(max(1, min(torch.get_num_threads(), worth)), layout)


def _tables(rows: int, layout: Layout) -> Tensor:
    """int32 tables of all patterns, ``(rows, 2, patterns)``, of which nobody looks but at a window."""
    size = rows << (9 + layout.top_bits)
    if not hasattr(_kept, "tables") or _kept.tables.numel() < size:
        with torch.inference_mode(False):
            _kept.tables = torch.empty(size, dtype=torch.int32, device="cpu")
    found: Tensor = _kept.tables
    return found[:size].view(rows, 2, -1)
