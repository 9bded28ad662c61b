"""Collects what is wrong with a config: one diagnostic per cause, each with its source line."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace

from quantcfg.errors import Diagnostic, DiagnosticList, Place

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
    _list: DiagnosticList = field(default_factory=DiagnosticList)
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
        self._list.add(Diagnostic(code, summary, place, source, label, notes, help, related, severity))
        if len(self._seen) == MAX_FINDINGS:
            summary = f"{MAX_FINDINGS} findings are shown; correct these first"
            self._list.add(Diagnostic("QC008", summary, place, source))

    def _is_first(self, code: str, cause: Hashable, place: Place | None) -> bool:
        """Whether a cause is new; a known one gets another place."""
        known = self._causes.setdefault((code, cause), len(self._list.items))
        if known == len(self._list.items):
            return True
        self._list.items[known] = _also_at(self._list.items[known], place)
        return False

    def warning(
        self, code: str, summary: str, place: Place | None = None, *, label: str = "", help: str = ""
    ) -> None:
        """Keep one finding that does not make the config invalid."""
        self.error(code, summary, place, label=label, help=help, severity="warning")

    @property
    def full(self) -> bool:
        """Whether there are so many findings that looking for more helps nobody."""
        return len(self._seen) >= MAX_FINDINGS

    @property
    def errors(self) -> list[Diagnostic]:
        """Those that make the config invalid, sorted by place."""
        return self._list.errors

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        """The others, in the order found."""
        return tuple(item for item in self._list.items if item.severity == "warning")

    def raise_if_errors(self) -> None:
        """Raise `ConfigError` with every error collected so far."""
        self._list.raise_if_errors()


def _also_at(finding: Diagnostic, place: Place | None) -> Diagnostic:
    return replace(finding, related=(*finding.related, (place, "also here"))) if place else finding


def source_line(sources: Mapping[str, str], place: Place | None) -> str:
    """The text of the line that a place points to; empty when it is not known."""
    if place is None or place.file not in sources:
        return ""
    lines = sources[place.file].split("\n", place.line)
    return lines[place.line - 1] if place.line <= len(lines) else ""
