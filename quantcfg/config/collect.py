"""Collects what is wrong with a config: one diagnostic per cause, each with its source line."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace

from quantcfg.errors import ConfigError, Diagnostic, Place

MAX_FINDINGS = 100
Related = tuple[tuple[Place, str], ...]


@dataclass(slots=True)
class Findings:
    """The texts that were read, by name, and everything found in them.

    ``doubled`` holds the places of values whose key stands twice, ``checked`` the patterns of names and types
    that were looked at, by kind.
    """

    sources: dict[str, str] = field(default_factory=dict)
    doubled: set[Place] = field(default_factory=set)
    checked: set[tuple[str, str]] = field(default_factory=set)
    _items: list[Diagnostic] = field(default_factory=list)
    _seen: set[tuple[str, Place | None, str]] = field(default_factory=set)
    _causes: dict[tuple[str, Hashable], int] = field(default_factory=dict)

    def error(
        self,
        code: str,
        summary: str,
        place: Place | None = None,
        *,
        label: str = "",
        notes: tuple[str, ...] = (),
        help: str = "",
        related: Related = (),
        severity: str = "error",
        cause: Hashable = None,
    ) -> None:
        """Keep one finding; the same code at the same place is kept once.

        Of those with the same ``cause`` the first is kept, and has the places of the others.
        """
        key = (code, place, "" if place else summary)
        if key in self._seen or self.full:
            return
        self._seen.add(key)
        if cause is not None and not self._is_first(code, cause, place):
            return
        source = source_line(self.sources, place)
        self._items.append(Diagnostic(code, summary, place, source, label, notes, help, related, severity))
        if len(self._seen) == MAX_FINDINGS:
            summary = f"{MAX_FINDINGS} findings are shown; correct these first"
            self._items.append(Diagnostic("QC008", summary, place, source))

    def _is_first(self, code: str, cause: Hashable, place: Place | None) -> bool:
        """Whether a cause is new; a known one gets another place."""
        known = self._causes.setdefault((code, cause), len(self._items))
        if known == len(self._items):
            return True
        self._items[known] = _also_at(self._items[known], place)
        return False

    def warning(
        self,
        code: str,
        summary: str,
        place: Place | None = None,
        *,
        label: str = "",
        help: str = "",
        related: Related = (),
    ) -> None:
        """Keep one finding that does not make the config invalid."""
        self.error(code, summary, place, label=label, help=help, related=related, severity="warning")

    @property
    def full(self) -> bool:
        """Whether there are so many findings that looking for more helps nobody."""
        return len(self._seen) >= MAX_FINDINGS

    @property
    def errors(self) -> list[Diagnostic]:
        """Those that make the config invalid, sorted by place."""
        return sorted((item for item in self._items if item.severity == "error"), key=_by_place)

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        """The others, in the order found."""
        return tuple(item for item in self._items if item.severity == "warning")

    def raise_if_errors(self) -> None:
        """Raise `ConfigError` with every error collected so far."""
        if errors := self.errors:
            raise ConfigError(errors)


def _by_place(finding: Diagnostic) -> tuple[str, int, int, str]:
    place = finding.place
    return (place.file, place.line, place.column, finding.code) if place else ("", 0, 0, finding.code)


def _also_at(finding: Diagnostic, place: Place | None) -> Diagnostic:
    return replace(finding, related=(*finding.related, (place, "also here"))) if place else finding


def source_line(sources: Mapping[str, str], place: Place | None) -> str:
    """The text of the line that a place points to; empty when it is not known."""
    if place is None or place.file not in sources:
        return ""
    lines = sources[place.file].split("\n", place.line)
    return lines[place.line - 1] if place.line <= len(lines) else ""
