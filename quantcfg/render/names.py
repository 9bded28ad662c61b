"""Many names of ops in few words: ``layer{1..4}.{0,1}.conv1``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

# `01` is a text: as a number it would be shown as another name
_NUMBER = re.compile(r"(?<![0-9])(?:0|[1-9][0-9]*)(?![0-9])")
_SHOWN = 3  # patterns or names before the rest is only counted


def summarize(names: Sequence[str]) -> str:
    """Patterns that stand for exactly ``names``, in the order of their first one."""
    groups: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for name in names:
        groups.setdefault(tuple(_NUMBER.split(name)), []).append(tuple(map(int, _NUMBER.findall(name))))
    patterns = [text for around, numbers in groups.items() for text in _patterns(around, numbers)]
    shown = ", ".join(patterns[:_SHOWN])
    return shown if len(patterns) <= _SHOWN else f"{shown}, ... ({len(patterns) - _SHOWN} more)"


def _patterns(around: tuple[str, ...], numbers: list[tuple[int, ...]]) -> Iterable[str]:
    columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    if math.prod(map(len, columns)) == len(set(numbers)):
        yield _fill(around, [_set(column) for column in columns])
    else:  # not every combination is there: one pattern per value of the first number that varies
        vary = next(index for index, column in enumerate(columns) if len(column) > 1)
        for value in columns[vary]:
            yield from _patterns(around, [row for row in numbers if row[vary] == value])


def _set(values: list[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{{{values[0]}..{values[-1]}}}"
    return "{" + ",".join(map(str, values)) + "}"


def _fill(around: tuple[str, ...], texts: list[str]) -> str:
    return "".join(part + text for part, text in zip(around, [*texts, ""], strict=True))
