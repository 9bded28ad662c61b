"""The nearest match of a misspelt name, and names and numbers of things in a sentence."""

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

    Letter case and ``-`` for ``_`` cost less than any edit. Of candidates equally near, one that a slip of
    the fingers explains comes first; then the earlier one.
    """
    limit = max(1, len(name) // 3)
    folded = _fold(name)
    best, best_cost = None, (limit + 1, 0)
    for candidate in candidates:
        if _fold(candidate) == folded:
            return candidate
        edits = distance(name[:200], candidate, min(limit, best_cost[0], 8))
        cost = (edits, 0 if edits > best_cost[0] else _oddness(name, candidate))
        if cost < best_cost and edits < max(len(name), 2):
            best, best_cost = candidate, cost
    return best


def _oddness(name: str, meant: str) -> int:
    """0 when letters of ``meant`` were left out, swapped or doubled; 1 when others came in their place."""
    left_out = _is_inside(name, meant)
    swapped = sorted(name) == sorted(meant)
    doubled = _is_inside(meant, name) and set(name) == set(meant)
    return int(not (left_out or swapped or doubled))


def _is_inside(short: str, long: str) -> bool:
    """Whether the letters of ``short`` stand in ``long`` in the same order."""
    letters = iter(long)
    return all(letter in letters for letter in short)


def _fold(name: str) -> str:
    return name.strip("\u201c\u201d\u2018\u2019\"'").lower().replace("-", "_").replace(" ", "_")


def counted(count: int, one: str, many: str = "") -> str:
    """``1 batch``, ``2 batches``; ``many`` is ``one`` with an s unless it is given."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def change(what: str, was: object, now: object) -> str:
    """``lr was 0.1 and is 0.2``; None is what is not there."""
    before, after = ("not there" if value is None else value for value in (was, now))
    return f"{what} was {before} and is {after}"


def listing(names: Iterable[str], limit: int = 8) -> str:
    """Names for a message: all up to ``limit``, else the first ones and how many more."""
    names = list(names)
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[:limit])} and {len(names) - limit} more"
