"""Points in an image that are made of the places of its cells: boxes that are decoded, points to sample at.

On a grid of 256 steps across an image they move by pixels, and scores that a detector hands out in one tensor
with its boxes are all 0. A flow is the small difference of two such points. An expected place is the sum of
all places, each times its probability: of many, each has so little that a grid leaves nothing of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantcfg.preparation.masks import can_be_read
from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Recording, Site, Value

LABELS = "handed out beside whole numbers, of labels say: on one grid with them little would be left of it"
REASON = "made of the places of cells in an image: on a grid it would move by pixels"
FINE_BITS = 16
"""With as many bits a grid is fine enough for such points."""

_RANGES = ("arange", "linspace")
_SUMS = ("add", "sub", "rsub")
DECODING = frozenset({*_SUMS, "mul", "div", "exp", "log2", "maximum", "minimum"})
"""Ops that make a place of what a layer says, and of other places."""
_SHIFTS = DECODING | {"setitem", "affine_grid"}
KEEPING = (OpKind.MOVE, OpKind.CLIP, OpKind.JOIN, OpKind.STATISTIC)
_SOFTMAXES = ("softmax", "softmin", "gumbel_softmax")
_FEWEST = 4  # numbers in equal steps; of fewer, as one for each color, it would be chance
_ROUNDING = 1e-2  # of a step


def points_in(recording: Recording) -> set[int]:
    """The values that hold such points, where they are only handed out or sampled at in the end."""
    places = _places_in(recording)
    expected = _expected_in(recording, places)
    possible = _leading_out(recording, places, expected)
    found = set[int]()
    for value in recording.values:
        starts = value.index in expected or _is_point(recording.producer(value.index), places)
        if value.index in possible and (starts or not found.isdisjoint(_sources(recording, value))):
            found.add(value.index)
    for value in reversed(recording.values):
        if value.index in found:
            found.update(possible.intersection(_sources(recording, value)))
    found |= expected
    return found | {place for site in recording.sites for place in _places_beside(site, places, found)}


def labelled_in(recording: Recording) -> set[int]:
    """The values in which numbers that were counted or looked up are handed out beside activations."""
    places = _places_in(recording)
    possible = _leading_out(recording, places, set())
    found = set[int]()
    for value in recording.values:
        site = recording.producer(value.index)
        if value.index not in possible or site is None or site.kind not in (OpKind.MOVE, OpKind.JOIN):
            continue
        joined = site.kind is OpKind.JOIN and not places.isdisjoint(_sources(recording, value))
        if joined or not found.isdisjoint(_sources(recording, value)):
            found.add(value.index)
    return found


def looks_counted(tensor: Tensor) -> bool:
    """Whether the numbers of a constant are in equal steps, most of which are taken.

    So are the places that a model keeps from one image to the next of the same size, or in a buffer.
    """
    if not tensor.dim() or not can_be_read(tensor):
        return False
    numbers = tensor.detach().double()
    lowest = numbers.min()
    above = numbers[numbers > lowest]
    if not above.numel():
        return False
    steps = (numbers - lowest) / (above.min() - lowest)
    if not bool(((steps - steps.round()).abs() <= _ROUNDING).all()):
        return False
    taken = torch.unique(steps.round())
    return len(taken) >= _FEWEST and float(taken[-1]) < 2 * len(taken)


def _places_in(recording: Recording) -> set[int]:
    """The values made of numbers that this forward counted or an earlier one, and of no activation.

    With one dimension a constant that is added is rather a bias.
    """
    found = set[int]()
    for value in recording.values:
        site = recording.producer(value.index)
        made = not found.isdisjoint(_sources(recording, value))
        counted = (value.counted and len(value.shape) > 1) or (site is not None and _counts(site))
        if not (value.live or value.mask) and (made or counted):
            found.add(value.index)
    return found


def _counts(site: Site) -> bool:
    return not site.data and (site.kind is not OpKind.CREATE or site.op in _RANGES)


def _sources(recording: Recording, value: Value) -> tuple[int, ...]:
    site = recording.producer(value.index)
    return value.parts if site is None else tuple(operand.value for operand in site.data)


def _expected_in(recording: Recording, places: set[int]) -> set[int]:
    """The values from probabilities to the sums of the places that they are multiplied with."""
    counted = places | {value.index for value in recording.values if value.counted}
    found = set[int]()
    for site in recording.sites:
        weighed = recording.live(site)
        read = {operand.value for operand in (*site.data, *site.weights)} - weighed
        sums = [] if len(weighed) != 1 or not read or not read <= counted else _sums_of(recording, site)
        path = recording.made_of(weighed, through=_is_probability) if sums else set[int]()
        makers = [recording.producer(value) for value in path]
        if any(maker is not None and maker.op in _SOFTMAXES for maker in makers):
            found.update(path, site.outputs, sums)
    return found


def _sums_of(recording: Recording, site: Site) -> list[int]:
    """The sums of the products that a site makes; none where it makes none, or others read them."""
    if site.kind is OpKind.GEMM:
        return [*site.outputs]
    readers = recording.readers(site) if site.op == "mul" else []
    return [reader.outputs[0] for reader in readers] if all(reader.op == "sum" for reader in readers) else []


def _is_probability(maker: Site, reader: Site | None) -> bool:
    """Up to the softmax, by way of sums over some of the places."""
    if reader is not None and reader.op in _SOFTMAXES:
        return False
    return maker.kind is OpKind.MOVE or maker.op in (*_SOFTMAXES, "sum")


def _is_point(site: Site | None, places: set[int]) -> bool:
    if site is None:
        return False
    shifted = site.op in _SUMS and any(operand.value in places for operand in site.data)
    return shifted or site.op == "affine_grid"


def _leading_out(recording: Recording, places: set[int], expected: set[int]) -> set[int]:
    """The activations, and ``expected`` places, that are only shifted before they are handed out or read."""
    found, hidden = set[int](), set[int]()  # hidden: part of what is read for something else
    for value in reversed(recording.values):
        site = recording.producer(value.index)
        shifts = bool(value.parts) if site is None else site.op in _SHIFTS or site.kind in KEEPING
        keeps = shifts or value.index in expected
        readers = [recording.sites[index] for index in value.consumers]
        ends = all(_ends(reader, value, places) or found.issuperset(reader.outputs) for reader in readers)
        if value.live and keeps and ends and value.index not in hidden:
            found.add(value.index)
        else:
            hidden.update(value.parts)
    return found


def _ends(reader: Site, value: Value, places: set[int]) -> bool:
    """Whether points end at ``reader``: what it makes of them is an image, or how far they have moved."""
    if reader.op == "grid_sample":
        return value.index in sampled_at(reader)
    return reader.op == "sub" and [o.value in places for o in reader.data] == [False, True]


def sampled_at(site: Site) -> set[int]:
    """The points that a ``grid_sample`` reads."""
    return {operand.value for operand in site.data if operand.slot[0] in (1, "grid")}


def _places_beside(site: Site, places: set[int], points: set[int]) -> set[int]:
    """The places that ``site`` reads together with points, or samples at."""
    if site.op == "grid_sample":
        return places & sampled_at(site)
    read = {operand.value for operand in site.data}
    return set() if read.isdisjoint(points) else places & read
