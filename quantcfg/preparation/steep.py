"""Values of which only the inverse, the root or the logarithm is taken, all of them steep near 0.

Rounded to 0, the inverse and the logarithm are infinite and the root has an infinite slope; and where one
grid has to hold the largest of them, most of what is small is 0. A sum with a small number against that
rounds to 0, too. So does the power in most bands of a spectrum, whose logarithm is what a network listens to.
"""

from __future__ import annotations

from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Operand, Recording, Site

INVERSES = ("rdiv", "reciprocal", "rsqrt")
_DIVISOR = "is divided by: rounded to 0 it would make the quotient infinite"
_LOGARITHM = "only its logarithm counts: rounded before, what is small would be lost"
_ROOT = "only its root counts: rounded before, what is small would be lost"
_REASONS = {
    **dict.fromkeys(INVERSES, _DIVISOR),
    "sqrt": _ROOT,
    **dict.fromkeys(("log", "log2", "log10", "logit"), _LOGARITHM),
}

_SHIFTS = ("sub", "rsub", "mul", "maximum", "minimum")
_POWERS = ("pow", "square", "abs")
_CARRIERS = frozenset({
    "add", "sum", "mean", "div", "where", "cat", "stack", "index_add", "scatter_add", "scatter_reduce",
})  # fmt: skip


def steepness(reader: Site, operand: Operand) -> str:
    """Why an operand should not be rounded before ``reader``, if it takes the inverse, root or logarithm."""
    if reader.op == "div" and operand.slot[0] in (1, "other"):
        return _DIVISOR
    if reader.exponent is not None and reader.exponent < 1:
        return _ROOT if reader.exponent > 0 else _DIVISOR
    return _REASONS.get(reader.op, "")


def kept_for_steepness(recording: Recording) -> dict[int, str]:
    """The sites of whose results nothing else is taken, be it by way of sums and of other sizes: why."""
    kept: dict[int, str] = {}
    for site in reversed(recording.sites):
        uses = _uses(recording, site, kept)
        if uses and all(uses) and recording.returned.isdisjoint(site.outputs):
            kept[site.index] = uses[0]
    return kept


def _uses(recording: Recording, site: Site, kept: dict[int, str]) -> list[str]:
    """For each use of what a site makes the reason not to round it before; empty where there is none."""
    return [
        steepness(reader, operand) or _passed_on(recording, reader, kept.get(reader.index, ""))
        for reader in recording.readers(site)
        for operand in (*reader.data, *reader.others)
        if operand.value in site.outputs
    ]


def _passed_on(recording: Recording, reader: Site, reason: str) -> str:
    """The reason not to round what ``reader`` makes, where it holds for what it reads too.

    The root of a sum of squares is about as large as the greatest; the logarithm of each square counts.
    """
    if reader.op in _POWERS:
        return reason if reason == _LOGARITHM else ""
    return reason if _carries(recording, reader) else ""


def _carries(recording: Recording, site: Site) -> bool:
    """Whether a site only moves what it reads, adds it up, or changes its size."""
    if site.op in _SHIFTS:
        return len(recording.live(site)) == 1
    return filters(recording, site) or site.kind in (OpKind.MOVE, OpKind.CLIP) or site.op in _CARRIERS


def filters(recording: Recording, site: Site) -> bool:
    """Whether a product adds up what it reads by a table that is not learned: a spectrum by bands, say."""
    read = [recording.values[operand.value] for operand in (*site.data, *site.weights)]
    tables = [value for value in read if not value.live]
    return site.kind is OpKind.GEMM and bool(tables) and not any(table.learned for table in tables)
