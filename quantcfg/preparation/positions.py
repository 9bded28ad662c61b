"""Recognising positions and times, of which only angles, indices and masks are made.

A grid of 256 steps turns the angles of a time in thousands, or of a point at high frequencies, into noise,
and points at the next pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantcfg.preparation.record import Recording, Site, Value

REASON = "a position or a time: a grid is too coarse for the angle, index or mask that is made of it"

_ANGLES = ("sin", "cos")
_CASTS = frozenset({"long", "int", "short", "byte", "char", "bool", "to", "type"})
_COMPARISONS = frozenset({"gt", "lt", "ge", "le", "eq", "ne"})
_CHOICES = frozenset({"argmax", "argmin", "argsort", "bucketize", "searchsorted"})
_ENDS = _CASTS | _COMPARISONS | _CHOICES


def positions_in(recording: Recording) -> set[int]:
    """The values without a part of any parameter that are read for an angle, an index or a mask alone."""
    found: set[int] = set()
    for value in reversed(recording.values):  # what is made of a value comes after it
        readers = [recording.sites[index] for index in value.consumers]
        if _is_unlearned(recording, value) and all(_ends(reader, found) for reader in readers):
            found.add(value.index)
    return found


def _is_unlearned(recording: Recording, value: Value) -> bool:
    read = bool(value.consumers or value.asked) and value.index not in recording.returned
    return read and not value.learned and _ENDS.issuperset(value.asked)


def _ends(reader: Site, found: set[int]) -> bool:
    return reader.op in _ANGLES or found.issuperset(reader.outputs)
