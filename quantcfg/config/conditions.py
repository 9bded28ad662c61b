"""Conditions on a number, as guards write them: ``>= 0.95``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

CONDITION_PATTERN = r"^\s*(>=|<=|>|<)\s*(-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?)\s*$"
SIZE_PATTERN = r"^\s*(>=|<=|>|<)\s*([0-9]+(\.[0-9]+)?)\s*(B|KiB|MiB|GiB)\s*$"
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison with a bound."""

    comparison: str
    bound: float

    def holds(self, value: float) -> bool:
        """Whether ``value`` meets the condition; NaN never does."""
        return COMPARISONS[self.comparison](value, self.bound)

    def __str__(self) -> str:
        return f"{self.comparison} {self.bound:g}"


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Raises:
        ValueError: not a comparison with a number.
    """
    match = re.match(CONDITION_PATTERN, text)
    if match is None:
        raise ValueError(f"not a condition such as '>= 0.95': {text!r}")
    return Condition(match[1], float(match[2]))


def parse_size(text: str) -> Condition:
    """Read a condition on bytes.

    Raises:
        ValueError: not a comparison with a size.
    """
    match = re.match(SIZE_PATTERN, text)
    if match is None:
        raise ValueError(f"not a condition such as '<= 24 MiB': {text!r}")
    return Condition(match[1], float(match[2]) * _UNITS[match[4]])
