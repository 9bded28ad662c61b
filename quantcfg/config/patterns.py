"""The one dialect of name patterns: whole names by segments, ``*``, ``**``, ``?``, ``{a,b}``, ``{2..9}``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache

REGEX_PREFIX = "re:"
MAX_LENGTH = 1000
MAX_RANGE = 10_000
MAX_REPEATS = 4
MAX_BRACES = 16
_SPECIAL = re.compile(r"[*?{}\[\]]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(0|[1-9]\d{0,8})\.\.(0|[1-9]\d{0,8})")
_REGEX_TOKEN = re.compile(
    r"(?:(?P<open>\((?:\?[:P<=!a-zA-Z][^()]*?[:>]|\?:)?)|(?P<close>\))|(?P<choice>\|)"
    r"|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[^()|\\])(?P<repeat>[*+]|\{\d*,?\d*\})?",
    re.DOTALL,
)


class PatternError(ValueError):
    """A pattern that cannot be read; ``offset`` counts characters from its start."""

    def __init__(self, message: str, offset: int = 0, *, hint: str = "") -> None:
        super().__init__(message)
        self.offset = offset
        self.hint = hint


@dataclass(frozen=True)
class Segment:
    """One part of a pattern between dots: a literal name, a glob, or ``**``.

    ``glob`` is the regular expression of a glob; it is compiled when a name is first compared with it.
    """

    text: str
    glob: str | None = None

    @cached_property
    def regex(self) -> re.Pattern[str] | None:
        """The compiled glob; None for a literal name and for ``**``."""
        return None if self.glob is None else re.compile(self.glob, re.DOTALL)

    @property
    def is_any_depth(self) -> bool:
        """Whether this is ``**``."""
        return self.text == "**"

    def matches(self, name: str) -> bool:
        """Whether one segment of a module name fits."""
        return self.regex.fullmatch(name) is not None if self.regex else self.text == name


def is_exact(pattern: str) -> bool:
    """Whether a pattern is just a name: no wildcard, no braces, no ``re:``."""
    return not pattern.startswith(REGEX_PREFIX) and not _SPECIAL.search(pattern)


def parse_pattern(pattern: str) -> tuple[Segment, ...]:
    """Split a glob pattern into segments.

    Raises:
        PatternError: with the offset of what cannot be read.
    """
    if not pattern:
        raise PatternError("it is empty", hint="what holds for the whole model stands under `global`")
    if len(pattern) > MAX_LENGTH:
        raise PatternError(f"longer than {MAX_LENGTH} characters")
    return tuple(_segment(text, offset) for text, offset in _split(pattern))


@dataclass(frozen=True, slots=True)
class Alternative:
    """One name of a ``{a,b}``, which stands at ``offset`` between ``head`` and ``tail``, braces left out.

    ``group`` holds all names of these braces, ``segments`` the pattern with this one alone.
    """

    text: str
    offset: int
    group: tuple[str, ...]
    head: str
    tail: str
    segments: tuple[Segment, ...]


def alternatives(pattern: str) -> Iterator[Alternative]:
    """Every alternative of a pattern that can be read; numbers of a range, and of a regex, are none."""
    for braces in () if pattern.startswith(REGEX_PREFIX) else _BRACES.finditer(pattern):
        head, tail, offset = pattern[: braces.start()], pattern[braces.end() :], braces.start() + 1
        group = () if _RANGE.fullmatch(braces[1]) else tuple(braces[1].split(","))
        for name in group:
            before = head.rstrip("*") if name.startswith("*") else head
            after = tail.lstrip("*") if name.endswith("*") else tail
            with suppress(PatternError):  # `^a` is a name between braces alone
                yield Alternative(name, offset, group, head, tail, parse_pattern(f"{before}{name}{after}"))
            offset += len(name) + 1


def parse_regex(pattern: str) -> re.Pattern[str]:
    """Compile a ``re:`` pattern; it is matched against the whole name.

    Raises:
        PatternError: not a regular expression, or one whose time may explode: a repeat of a repeat.
    """
    body = pattern.removeprefix(REGEX_PREFIX)
    if len(body) > MAX_LENGTH:
        raise PatternError(f"longer than {MAX_LENGTH} characters")
    try:
        compiled = re.compile(body)
    except (re.error, RecursionError, OverflowError) as error:
        offset = getattr(error, "pos", None) or 0
        message = getattr(error, "msg", "too complex")
        raise PatternError(f"not a regular expression: {message}", offset + len(REGEX_PREFIX)) from None
    _refuse_explosive(body)
    return compiled


def _refuse_explosive(body: str) -> None:
    """Refuse what Python's matcher may take forever on, on a name that almost matches."""
    repeats, groups = 0, [False]
    for token in _REGEX_TOKEN.finditer(body):
        repeated = token["repeat"] is not None
        repeats += repeated
        if token["open"]:
            groups.append(False)
        elif token["close"]:
            inner = groups.pop()
            if inner and repeated:
                raise PatternError(
                    "repeats a group that repeats or chooses itself, which may take forever",
                    len(REGEX_PREFIX) + token.start(),
                    hint="repeat one thing at a time, or use `*` and `**` without `re:`",
                )
            groups[-1] = groups[-1] or inner or repeated
        elif repeated or token["choice"]:
            groups[-1] = True
    if repeats > MAX_REPEATS:
        raise PatternError(f"more than {MAX_REPEATS} repeats, which may take forever", len(REGEX_PREFIX))


def _split(pattern: str) -> Iterator[tuple[str, int]]:
    """The segments and their offsets; dots inside braces do not separate."""
    start, opened = 0, -1
    for offset, char in enumerate(pattern):
        if char == "{":
            if opened >= 0:
                raise PatternError("braces inside braces", offset)
            opened = offset
        elif char == "}":
            if opened < 0:
                raise PatternError("`}` without `{`", offset)
            opened = -1
        elif char == "." and opened < 0:
            yield pattern[start:offset], start
            start = offset + 1
    if opened >= 0:
        raise PatternError("`{` is never closed", opened)
    yield pattern[start:], start


def _segment(text: str, offset: int) -> Segment:
    if not text:
        raise PatternError("an empty segment: two dots in a row, or a dot at an end", offset)
    if text == "**":
        return Segment(text)
    if "**" in text:
        raise PatternError("`**` must be a whole segment", offset + text.index("**"))
    if "[" in text or "]" in text:
        position = next(i for i, char in enumerate(text) if char in "[]")
        hint = "write `{a,b}` or `{0..9}`, or start the pattern with `re:`"
        raise PatternError("`[` and `]` are not part of patterns", offset + position, hint=hint)
    if text.startswith("^") or text.endswith("$"):
        hint = "write `re:` before a regular expression, without `^` and `$`: it matches whole names"
        raise PatternError("`^` and `$` are not part of patterns", offset, hint=hint)
    if not _SPECIAL.search(text):
        return Segment(text)
    if text.count("{") > MAX_BRACES:
        raise PatternError(f"more than {MAX_BRACES} `{{...}}` in one segment", offset)
    if text.count("*") > MAX_REPEATS:
        raise PatternError(f"more than {MAX_REPEATS} `*` in one segment", offset)
    return Segment(text, _glob_regex(text, offset))


def _glob_regex(text: str, offset: int) -> str:
    pieces: list[str] = []
    position = 0
    while position < len(text):
        char = text[position]
        if char == "{":
            end = text.index("}", position)
            pieces.append(_braces(text[position + 1 : end], offset + position))
            position = end
        else:
            pieces.append({"*": ".*", "?": "."}.get(char) or re.escape(char))
        position += 1
    return "".join(pieces)


def _braces(body: str, offset: int) -> str:
    span = _RANGE.fullmatch(body)
    if span:
        return _range(int(span[1]), int(span[2]), offset)
    if ".." in body:
        raise PatternError(f"`{{{body}}}` is not a range of two whole numbers", offset)
    names = body.split(",")
    if len(names) < 2 or not all(names):
        raise PatternError(f"`{{{body}}}` needs two or more alternatives", offset)
    if "." in body:
        raise PatternError("alternatives hold one segment each, without dots", offset)
    return f"(?:{'|'.join(_alternative(name) for name in names)})"


def _range(first: int, last: int, offset: int) -> str:
    if first > last:
        raise PatternError(f"the range is empty: {first} is above {last}", offset)
    if last - first > MAX_RANGE:
        raise PatternError(f"a range of more than {MAX_RANGE} numbers", offset)
    return _any_number(first, last)


@lru_cache(maxsize=256)
def _any_number(first: int, last: int) -> str:
    return f"(?:{'|'.join(_numbers(first, last))})"


def _numbers(first: int, last: int) -> Iterator[str]:
    """Regular expressions for the numbers of a range: one for each run that ends in any digits."""
    while first <= last:
        step = 1
        while first % (step * 10) == 0 and first + step * 10 - 1 <= last and _same_length(first, step * 10):
            step *= 10
        yield str(first // step if step > 1 else first) + "[0-9]" * (len(str(step)) - 1)
        first += step


def _same_length(first: int, step: int) -> bool:
    return len(str(first)) == len(str(first + step - 1)) and first > 0


def _alternative(name: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(char) or re.escape(char) for char in name)
