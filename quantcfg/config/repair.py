"""What a segment of a pattern was meant to be, from the names that are there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from quantcfg.config.patterns import is_exact, parse_pattern
from quantcfg.config.suggest import distance, nearest

_PIECES = re.compile(r"\{[^}]*\}|[*?]|[^*?{}]+")
_SHORTEST = 2  # letters: what is shorter resembles everything
_MAX_NAMES = 200


def repaired_segment(text: str, names: Iterable[str]) -> str | None:
    """The segment with one of its literal parts corrected so that it fits one of ``names``, or None."""
    names = list(names)[:_MAX_NAMES]
    if is_exact(text):
        return nearest(text, names)
    found = min(_repairs(text, names), default=None)
    return found[1] if found else None


def _repairs(text: str, names: list[str]) -> Iterator[tuple[int, str]]:
    """Each correction of one part that fits a name, with its number of edits."""
    pieces = _PIECES.findall(text)
    for index, piece in enumerate(pieces):
        if len(piece) < _SHORTEST or not is_exact(piece):
            continue
        limit = max(1, len(piece) // 3)
        for word in _words(names, len(piece) - limit, len(piece) + limit):
            edits = distance(piece, word, limit)
            repaired = "".join([*pieces[:index], word, *pieces[index + 1 :]])
            if (
                edits <= limit
                and is_exact(word)
                and any(parse_pattern(repaired)[0].matches(name) for name in names)
            ):
                yield edits, repaired


def _words(names: list[str], shortest: int, longest: int) -> set[str]:
    """Every part of a name that is about as long as what it may have to stand for."""
    lengths = range(max(shortest, 1), longest + 1)
    return {name[start : start + n] for name in names for n in lengths for start in range(len(name) - n + 1)}
