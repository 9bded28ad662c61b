"""One page of the documentation of error codes."""

from __future__ import annotations

from dataclasses import dataclass

EXAMPLE_MODEL = (
    "The example is about a model that runs a convolution `conv`, its batch norm `bn`, a ReLU, a dropout "
    "`drop`, a transposed convolution `up` and a linear layer `head`, and never its linear layer `spare`."
)


@dataclass(frozen=True, slots=True)
class Page:
    """What a code means. ``failing`` gives it; ``fixed`` is the same config mended.

    ``fails_with`` and ``fixed_with`` are values of ``--set`` that belong to them.

    ``needs_model`` says that the example is about the real model of `EXAMPLE_MODEL`.

    Where the fault is not in the text alone, both are empty: a second file or the encoding of the bytes.
    """

    code: str
    title: str
    text: str
    failing: str = ""
    fixed: str = ""
    fails_with: str = ""
    fixed_with: str = ""
    needs_model: bool = False
