"""One page of the documentation of error codes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page:
    """What a code means. ``failing`` gives it; ``fixed`` is the same config mended.

    Where the fault is not in the text alone, both are empty: a second file or the encoding of the bytes.
    """

    code: str
    title: str
    text: str
    failing: str = ""
    fixed: str = ""
