"""Finds every pattern that matches a module name, in time that does not grow with patterns that do not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from quantcfg.config.patterns import REGEX_PREFIX, Segment, is_exact, parse_pattern, parse_regex

T = TypeVar("T")


class _State(Generic[T]):
    """A place in the tree of all patterns: what may come next, and what ends here."""

    __slots__ = ("any_depth", "globs", "items", "literals", "repeats")

    def __init__(self, *, repeats: bool = False) -> None:
        self.repeats = repeats
        self.literals: dict[str, _State[T]] = {}
        self.globs: dict[str, tuple[Segment, _State[T]]] = {}
        self.any_depth: _State[T] | None = None
        self.items: list[T] = []

    def child(self, segment: Segment) -> _State[T]:
        if segment.is_any_depth:
            if self.any_depth is None:
                self.any_depth = _State(repeats=True)
            return self.any_depth
        if segment.regex is None:
            return self.literals.setdefault(segment.text, _State())
        return self.globs.setdefault(segment.text, (segment, _State()))[1]


class NameIndex(Generic[T]):
    """Patterns in a tree by segments, walked together; exact names in a dict; each path looked up once."""

    def __init__(self, patterns: Iterable[tuple[str, T]]) -> None:
        self._exact: dict[str, list[T]] = {}
        self._regexes: list[tuple[re.Pattern[str], T]] = []
        self._root: _State[T] = _State()
        for pattern, item in patterns:
            self._add(pattern, item)
        self._states: dict[str, tuple[_State[T], ...]] = {}
        self._hits: dict[tuple[int, str], list[_State[T]]] = {}

    def _add(self, pattern: str, item: T) -> None:
        if is_exact(pattern):
            self._exact.setdefault(pattern, []).append(item)
        elif pattern.startswith(REGEX_PREFIX):
            self._regexes.append((parse_regex(pattern), item))
        else:
            self.add_segments(parse_pattern(pattern), item)

    def add_segments(self, segments: Sequence[Segment], item: T) -> None:
        """Add a pattern that is parsed already."""
        state = self._root
        for segment in segments:
            state = state.child(segment)
        state.items.append(item)

    def matches(self, path: str) -> list[T]:
        """The items of every pattern that matches the whole of ``path``."""
        found = [item for state in self._reached(path) for item in state.items]
        found += self._exact.get(path, ())
        found += [item for regex, item in self._regexes if regex.fullmatch(path)]
        return found

    def _reached(self, path: str) -> tuple[_State[T], ...]:
        states = self._states.get(path)
        if states is None and not path:
            states = self._states[path] = _closure([self._root])
        elif states is None:
            parent, _, name = path.rpartition(".")
            following = [state for above in self._reached(parent) for state in self._next(above, name)]
            states = self._states[path] = _closure(following)
        return states

    def _next(self, state: _State[T], name: str) -> list[_State[T]]:
        key = (id(state), name)
        hits = self._hits.get(key)
        if hits is None:
            hits = [child for segment, child in state.globs.values() if segment.matches(name)]
            if name in state.literals:
                hits.append(state.literals[name])
            if state.repeats:
                hits.append(state)
            self._hits[key] = hits
        return hits


def _closure(states: Sequence[_State[T]]) -> tuple[_State[T], ...]:
    """The states and those that ``**`` reaches by matching no segment at all."""
    reached: dict[int, _State[T]] = {}
    pending = list(states)
    while pending:
        state = pending.pop()
        if id(state) not in reached:
            reached[id(state)] = state
            if state.any_depth is not None:
                pending.append(state.any_depth)
    return tuple(reached.values())


def first_dead_segment(segments: Sequence[Segment], paths: Iterable[str]) -> tuple[int, list[str]]:
    """Where a glob stops matching: the index of its first segment that nothing fits, and the names before it.

    The names are all paths that the segments before that one do reach (``""`` is the model itself).
    """
    everything = sorted({"", *paths})
    reached = [""]
    for index in range(len(segments)):
        matcher: NameIndex[bool] = NameIndex([])
        matcher.add_segments(segments[: index + 1], True)
        following = [path for path in everything if path and matcher.matches(path)]
        if not following:
            return index, reached
        reached = following
    return len(segments), reached


def covers(pattern: str | Sequence[Segment]) -> Callable[[str], bool]:
    """Whether an op lies at or inside of what a name or pattern matches, by the name of the op."""
    index: NameIndex[bool] = NameIndex([(pattern, True)] if isinstance(pattern, str) else [])
    if not isinstance(pattern, str):
        index.add_segments(pattern, True)

    def inside(name: str) -> bool:
        parts = name.split(".")
        return any(index.matches(".".join(parts[:count])) for count in range(1, len(parts) + 1))

    return inside
