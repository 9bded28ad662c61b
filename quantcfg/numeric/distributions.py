"""What is known of the values of a stream or of a batch: the values themselves, or counts of bins."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from quantcfg.numeric.bins import EXPONENT_BIAS, Layout, channel_rows, exponents, tables
from quantcfg.numeric.counting import add_counts

# Width of a bin for one value, as a part of it: far below a step of 16 bits, far above float64's rounding.
_HAIR = 2.0**-24


class Points(NamedTuple):
    """A distribution known value by value.

    Shapes:
        values: float64 ``(C, V)``, 0 where ``counts`` is 0; counts: float64 ``(C, V)``.
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


def take_rows(distribution: Distribution, rows: slice) -> Distribution:
    """The distribution of some of the channels."""
    return type(distribution)(*(tensor[rows] for tensor in distribution))


class Statistics(Protocol):
    """What a range can be solved from."""

    @property
    def count(self) -> int:
        """Values per channel."""

    def distribution(self, low: Tensor, high: Tensor) -> Distribution:
        """What is known of the values, of which ``low`` and ``high``, ``(C,)``, are least and greatest."""

    def magnitudes(self, most: Tensor) -> Distribution:
        """The same without signs, ``most`` being the largest magnitudes, ``(C,)``; from zero up."""


class BatchValues:
    """All values of one batch: float32 ``(C, V)``."""

    def __init__(self, rows: Tensor) -> None:
        self.values = rows
        self.count = rows.shape[1]

    def distribution(self, low: Tensor, high: Tensor) -> Distribution:  # noqa: ARG002
        """Every value once."""
        return _each_once(self.values)

    def magnitudes(self, most: Tensor) -> Distribution:  # noqa: ARG002
        """Every magnitude once."""
        return _each_once(self.values.abs())


def _each_once(values: Tensor) -> Points:
    values = values.double()
    return Points(values, values.new_ones(1, 1).expand_as(values))


class BatchBins:
    """The counts of the bins of one batch, whose largest magnitudes are ``most``, ``(C,)``."""

    def __init__(self, x: Tensor, ch_axis: int, most: Tensor, layout: Layout) -> None:
        self.layout = layout
        self.top = exponents(most).clamp(min=layout.num_octaves)
        self.slots = torch.zeros(len(most), 2 * layout.num_slots, dtype=torch.int64, device=x.device)
        add_counts(self.slots, x, ch_axis, self.top, layout)
        self.count = x.numel() // most.numel()

    def distribution(self, low: Tensor, high: Tensor) -> Distribution:
        """The bins on both sides of zero."""
        return signed_bins(self.slots, self.top, self.layout, (low, high))

    def magnitudes(self, most: Tensor) -> Distribution:
        """The bins from zero up."""
        return magnitude_bins(self.slots, self.top, self.layout, most, self.count)


def magnitude_bins(slots: Tensor, top: Tensor, layout: Layout, most: Tensor, count: int) -> Bins:
    """The bins of ``count`` values in ``slots`` without signs, from zero up to ``most``, ``(C,)``."""
    unit = torch.exp2((top - EXPONENT_BIAS).double())[:, None]
    edges = torch.cat((torch.zeros_like(unit), tables(layout, slots).edges * unit), 1)
    counts = slots.view(len(slots), 2, -1).sum(1).double()
    counts[:, 0] = count - counts.sum(1)
    return Bins(edges.minimum(most.double()[:, None] * (1 + _HAIR)), counts)


def signed_bins(slots: Tensor, top: Tensor, layout: Layout, ends: tuple[Tensor, Tensor]) -> Bins:
    """The bins of counted ``slots`` from the least to the greatest value, ``ends``, each ``(C,)``.

    Those that are far below any step of a grid are taken together, eight to an octave.
    """
    unit = torch.exp2((top - EXPONENT_BIAS).double())[:, None]
    first = tables(layout, slots).first_slot
    magnitudes = tables(layout, slots).edges.index_select(0, first) * unit
    # Bins taken together are neighbours, so their counts are differences of running sums.
    running = slots.view(len(slots), 2, -1)[:, :, 1:].cumsum(2)
    last = torch.nn.functional.pad(running, (1, 0)).index_select(2, first)
    positive, negative = last.diff(dim=2).double().unbind(1)
    edges = torch.cat((-magnitudes.flip(1), magnitudes), 1)
    counts = torch.cat((negative.flip(1), torch.zeros_like(unit), positive), 1)
    low, high = (end.double()[:, None] for end in ends)
    return _with_ends(edges, counts, low, high)


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


def batch_statistics(
    x: Tensor, ch_axis: int, ends: tuple[Tensor, Tensor], layout: Layout, most_values: int
) -> Statistics:
    """The values of a batch if a channel has few enough, else the counts of the layout's bins."""
    if x.numel() // ends[0].numel() <= most_values:
        return BatchValues(channel_rows(x, ch_axis).float())
    return BatchBins(x, ch_axis, torch.maximum(ends[0].abs(), ends[1].abs()), layout)
