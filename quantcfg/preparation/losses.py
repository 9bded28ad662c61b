"""Losses and energies: numbers that a forward makes beside its result or in its place."""

from __future__ import annotations

from math import prod

from quantcfg.preparation.record import Recording, Value

NUMBER = "one number: a loss or an energy, and no tensor that a chip computes with"
FOR_NUMBER = "read for one number alone, a loss or an energy: no part of what a chip computes"


def read_for_numbers(recording: Recording) -> set[int]:
    """The values that nothing but such numbers is made of, these included, back to the layers.

    A tensor with one element may be the result for one sample: what that is made of is none of them.
    """
    return recording.read_only_by((), among=lambda value: not value.shape or _lies_between(recording, value))


def _lies_between(recording: Recording, value: Value) -> bool:
    """Whether ops read a value, and nobody else, that no layer has made."""
    maker = recording.producer(value.index)
    behind = maker is not None and not maker.weights and value.index not in recording.returned
    return behind and bool(value.consumers) and prod(value.shape) > 1
