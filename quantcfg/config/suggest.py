"""The nearest match of a misspelt name."""

from __future__ import annotations

from collections.abc import Iterable


def distance(a: str, b: str, limit: int) -> int:
    """Edits (insert, delete, replace, swap of neighbours) from ``a`` to ``b``; ``limit + 1`` when more."""
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    above = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        row = [i]
        for j, right in enumerate(b, 1):
            cost = min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right))
            if i > 1 and j > 1 and left == b[j - 2] and a[i - 2] == right:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
        before, above = above, row
    return min(above[-1], limit + 1)


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that ``name`` was most likely meant to be, or None when none is near.

    Letter case and ``-`` for ``_`` cost less than any edit. Ties go to the earlier candidate.
    """
    limit = max(1, len(name) // 3)
    folded = _fold(name)
    best, best_distance = None, limit + 1
    for candidate in candidates:
        if _fold(candidate) == folded:
            return candidate
        edits = distance(name[:200], candidate, min(limit, best_distance - 1, 8))
        if edits < best_distance and edits < max(len(name), 2):
            best, best_distance = candidate, edits
    return best


def _fold(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def listing(names: Iterable[str], limit: int = 8) -> str:
    """Names for a message: all up to ``limit``, else the first ones and how many more."""
    names = list(names)
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[:limit])} and {len(names) - limit} more"
