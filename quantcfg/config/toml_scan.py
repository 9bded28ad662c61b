"""Where the keys and values of a TOML text are; `tomllib` decides what is valid, this only finds places."""

from __future__ import annotations

import contextlib
import re
import tomllib
from dataclasses import dataclass, field

from quantcfg.config.nodes import Loc

Span = tuple[int, int]
"""Start and end as character offsets."""

KEY = r"(?:[A-Za-z0-9_-]+|\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*')"
"""One part of a key between dots, bare or quoted, as a regular expression."""

_KEY = re.compile(KEY)
_STRING = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'', re.DOTALL)
_BARE = re.compile(r"[^,\]}#\n]*")
_BLANK = re.compile(r"[ \t]*")
_GAP = re.compile(r"(?:[ \t\n]|#[^\n]*)*")


@dataclass(slots=True)
class Scan:
    """Spans by location; ``duplicate`` is the first key that was given a value twice."""

    keys: dict[Loc, Span] = field(default_factory=dict)
    values: dict[Loc, Span] = field(default_factory=dict)
    duplicate: tuple[Loc, Span, Span] | None = None


def scan(text: str) -> Scan:
    """Find every key and value; on invalid text, those before the first thing that is not TOML."""
    scanner = _Scanner(text)
    with contextlib.suppress(_Lost):
        scanner.document()
    return scanner.found


class _Lost(Exception):  # noqa: N818  ends the scan, nothing else
    """The text is not TOML here."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found = Scan()
        self.counts: dict[Loc, int] = {}

    def document(self) -> None:
        """Headers and assignments to the end of the text."""
        prefix: Loc = ()
        self._skip(_GAP)
        while self.at < len(self.text):
            if self.text.startswith("[[", self.at):
                prefix = self._header(2)
            elif self.text[self.at] == "[":
                prefix = self._header(1)
            else:
                self._assignment(prefix)
            self._skip(_GAP)

    def _header(self, brackets: int) -> Loc:
        start = self.at
        self.at += brackets
        loc: Loc = ()
        names = self._dotted()
        for index, (name, span) in enumerate(names):
            loc = (*loc, name)
            fresh = self._key(loc, span)
            last = index == len(names) - 1
            if last and brackets == 1 and not fresh and loc in self.found.values:
                self._duplicate(loc, span)
            if last and brackets == 2:
                self.counts[loc] = self.counts.get(loc, -1) + 1
            if loc in self.counts:
                loc = (*loc, self.counts[loc])
        self.at += brackets
        self.found.values.setdefault(loc, (start, self.at))
        return loc

    def _assignment(self, prefix: Loc) -> None:
        loc = prefix
        span = (self.at, self.at)
        for name, span in self._dotted():
            loc = (*loc, name)
            self._key(loc, span)
        if loc in self.found.values:
            self._duplicate(loc, span)
        self._expect("=")
        self._value(loc)

    def _value(self, loc: Loc) -> None:
        self._skip(_BLANK)
        start = self.at
        if start >= len(self.text):
            raise _Lost
        if self.text[start] == "[":
            self._array(loc)
        elif self.text[start] == "{":
            self._inline_table(loc)
        else:
            match = _STRING.match(self.text, start) or _BARE.match(self.text, start)
            self.at = start + len(match[0].rstrip()) if match else start
        self.found.values.setdefault(loc, (start, self.at))

    def _array(self, loc: Loc) -> None:
        self._expect("[")
        index = 0
        while self._more("]"):
            before = self.at
            self._value((*loc, index))
            if self.at == before and not self.text.startswith(",", self.at):
                raise _Lost  # what stands here is no value, and would stand here forever
            index += 1
            self._skip(_GAP)
            if self.text.startswith(",", self.at):
                self.at += 1

    def _inline_table(self, loc: Loc) -> None:
        self._expect("{")
        while self._more("}"):
            self._assignment(loc)
            self._skip(_GAP)
            if self.text.startswith(",", self.at):
                self.at += 1

    def _more(self, closing: str) -> bool:
        self._skip(_GAP)
        if self.at >= len(self.text):
            raise _Lost
        if self.text[self.at] == closing:
            self.at += 1
            return False
        return True

    def _dotted(self) -> list[tuple[str, Span]]:
        names: list[tuple[str, Span]] = []
        while True:
            self._skip(_BLANK)
            match = _KEY.match(self.text, self.at)
            if match is None:
                raise _Lost
            names.append((_unquoted(match[0]), match.span()))
            self.at = match.end()
            self._skip(_BLANK)
            if not self.text.startswith(".", self.at):
                return names
            self.at += 1

    def _key(self, loc: Loc, span: Span) -> bool:
        return self.found.keys.setdefault(loc, span) is span

    def _duplicate(self, loc: Loc, span: Span) -> None:
        if self.found.duplicate is None and self.found.keys[loc] != span:
            self.found.duplicate = (loc, self.found.keys[loc], span)

    def _expect(self, char: str) -> None:
        self._skip(_BLANK)
        if not self.text.startswith(char, self.at):
            raise _Lost
        self.at += len(char)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()


def _unquoted(key: str) -> str:
    if key[0] not in "\"'":
        return key
    if key[0] == "'" or "\\" not in key:
        return key[1:-1]
    try:
        return str(tomllib.loads(f"key = {key}")["key"])
    except tomllib.TOMLDecodeError:
        raise _Lost from None
