"""What a plain YAML scalar means: YAML 1.2 as people read it, without the traps of YAML 1.1."""

from __future__ import annotations

import math
import re

from quantcfg.config.spec import Scalar

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_PREFIXED = re.compile(r"0(x[0-9a-fA-F]+|o[0-7]+|b[01]+)")
_FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
MAX_INT = (1 << 63) - 1
MAX_DIGITS = 30


class ScalarError(ValueError):
    """A scalar that is refused; ``hint`` says what to write."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def read_plain(text: str) -> Scalar:
    """The value of an unquoted scalar. Words such as ``on`` and ``no`` and times such as ``12:30`` are text.

    Raises:
        ScalarError: a number that is ambiguous, not finite or too large.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _DECIMAL.fullmatch(text) or _PREFIXED.fullmatch(text):
        return checked_int(text)
    if _LEADING_ZERO.fullmatch(text):
        hint = f"write {text.lstrip('+-0_') or '0'}, or quote it if it is a text"
        raise ScalarError(
            f"`{text[:MAX_DIGITS]}` has a leading zero: octal to some readers, decimal to others", hint
        )
    if _NOT_FINITE.fullmatch(text):
        raise ScalarError(f"`{text}` is not a finite number")
    if _FLOAT.fullmatch(text):
        return checked_float(float(text), text)
    return text


def checked_int(text: str) -> int:
    """A whole number of at most 64 bits, in any base that Python's literals have."""
    return in_64_bits(int(text.lstrip("+"), 0) if len(text) <= MAX_DIGITS else MAX_INT + 1)


def in_64_bits(value: int) -> int:
    """The number, when 64 bits hold it."""
    if not -MAX_INT - 1 <= value <= MAX_INT:
        raise ScalarError("the number does not fit into 64 bits")
    return value


def checked_float(value: float, text: str) -> float:
    """The number, when it is finite."""
    if not math.isfinite(value):
        raise ScalarError(f"`{text[:MAX_DIGITS]}` is not a finite number")
    return value
