"""Diagnostics as text with the source line and a caret, and as JSON, GitHub annotations and SARIF."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import IO, Any

from quantcfg.config.suggest import counted
from quantcfg.errors import Diagnostic, Place
from quantcfg.render.text import display_width, safe_text, wants_colour

FORMAT_VERSION = "1.0"
MAX_LINE = 120
TAB = "    "
COLOURS = {
    "error": "\x1b[1;31m",
    "warning": "\x1b[1;33m",
    "frame": "\x1b[34m",
    "bold": "\x1b[1m",
    "help": "\x1b[36m",
}
_RESET = "\x1b[0m"


def format_diagnostic(diagnostic: Diagnostic, *, colour: bool = False) -> str:
    """One diagnostic in the manner of compilers: headline, place, source line with a caret, notes, help."""
    paint = _paint if colour else _plain
    head = paint(f"{diagnostic.severity}[{diagnostic.code}]", diagnostic.severity)
    lines = [f"{head}{paint(': ' + safe_text(diagnostic.summary), 'bold')}"]
    gutter = " " * len(str(diagnostic.place.line)) if diagnostic.place else " "
    if diagnostic.place:
        lines.append(f"{gutter}{paint('-->', 'frame')} {safe_text(str(diagnostic.place))}")
    if diagnostic.place and diagnostic.source:
        bar = paint("|", "frame")
        code, caret = _snippet(diagnostic.place, diagnostic.source)
        number = paint(str(diagnostic.place.line), "frame")
        label = f" {safe_text(diagnostic.label)}" if diagnostic.label else ""
        lines += [f"{gutter} {bar}", f"{number} {bar} {code}"]
        lines += [f"{gutter} {bar} {paint(caret + label, diagnostic.severity)}", f"{gutter} {bar}"]
    elif diagnostic.label:
        lines.append(f"{gutter} {paint('=', 'frame')} {safe_text(diagnostic.label)}")
    for kind, text in _remarks(diagnostic):
        lines.append(f"{gutter} {paint('=', 'frame')} {paint(kind + ':', 'help')} {safe_text(text)}")
    return "\n".join(lines)


def _remarks(diagnostic: Diagnostic) -> Iterable[tuple[str, str]]:
    for place, text in diagnostic.related:
        yield "note", f"{text}: {place}"
    for note in diagnostic.notes:
        yield "note", note
    if diagnostic.help:
        yield "help", diagnostic.help


def _snippet(place: Place, source: str) -> tuple[str, str]:
    """The source line, cut around the caret when it is long, and the carets beneath it."""
    start = min(place.column - 1, len(source))
    skip = max(start - MAX_LINE // 2, 0) if len(source) > MAX_LINE else 0
    shown = source[skip : skip + MAX_LINE]
    lead, tail = ("..." if skip else ""), ("..." if skip + MAX_LINE < len(source) else "")
    before, marked = shown[: start - skip], shown[start - skip : start - skip + place.length]
    indent = display_width(lead + _shown(before))
    carets = max(display_width(_shown(marked)), 1)
    return f"{lead}{_shown(shown)}{tail}".rstrip(), " " * indent + "^" * carets


def _shown(text: str) -> str:
    return safe_text(text.replace("\t", TAB))


def _paint(text: str, style: str) -> str:
    return f"{COLOURS[style]}{text}{_RESET}"


def _plain(text: str, style: str) -> str:
    del style
    return text


def format_diagnostics(diagnostics: Sequence[Diagnostic], *, colour: bool = False) -> str:
    """All diagnostics and how many they are, by file."""
    blocks = [format_diagnostic(item, colour=colour) for item in diagnostics]
    return "\n\n".join([*blocks, summary_of(diagnostics)]) if blocks else ""


def summary_of(diagnostics: Iterable[Diagnostic]) -> str:
    """``vit.yaml: 2 errors, 1 warning``, a line per file."""
    counts: dict[str, Counter[str]] = {}
    for item in diagnostics:
        counts.setdefault(item.place.file if item.place else "config", Counter())[item.severity] += 1
    return "\n".join(f"{safe_text(file)}: {_counted(count)}" for file, count in counts.items())


def _counted(counts: Counter[str]) -> str:
    kinds = [kind for kind in ("error", "warning", "note") if counts[kind]]
    return ", ".join(counted(counts[kind], kind) for kind in kinds)


def print_diagnostics(diagnostics: Sequence[Diagnostic], stream: IO[str] | None = None) -> None:
    """Write diagnostics to stderr, in colour when that is a terminal and NO_COLOR is not set."""
    stream = stream or sys.stderr
    text = format_diagnostics(diagnostics, colour=wants_colour(stream))
    if text:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def as_json(diagnostics: Sequence[Diagnostic]) -> dict[str, Any]:
    """The findings for machines. A reader must ignore keys that it does not know."""
    errors = sum(item.severity == "error" for item in diagnostics)
    warnings = sum(item.severity == "warning" for item in diagnostics)
    return {
        "format_version": FORMAT_VERSION,
        "valid": errors == 0,
        "error_count": errors,
        "warning_count": warnings,
        "diagnostics": [_as_json(item) for item in diagnostics],
    }


def _as_json(diagnostic: Diagnostic) -> dict[str, Any]:
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "summary": diagnostic.summary,
        "label": diagnostic.label,
        "range": _range(diagnostic.place),
        "notes": list(diagnostic.notes),
        "help": diagnostic.help,
        "related": [{"range": _range(place), "text": text} for place, text in diagnostic.related],
    }


def _range(place: Place | None) -> dict[str, Any] | None:
    if place is None:
        return None
    start = {"line": place.line, "column": place.column}
    return {
        "file": place.file,
        "start": start,
        "end": {"line": place.line, "column": place.column + place.length},
    }


def as_github(diagnostics: Sequence[Diagnostic]) -> str:
    """Workflow commands that GitHub shows as annotations beside the lines."""
    return "\n".join(_github_line(item) for item in diagnostics)


def _github_line(diagnostic: Diagnostic) -> str:
    kind = diagnostic.severity if diagnostic.severity in ("error", "warning") else "notice"
    properties = {"title": diagnostic.code}
    if diagnostic.place:
        place = diagnostic.place
        properties = {
            "file": place.file,
            "line": str(place.line),
            "col": str(place.column),
            "endColumn": str(place.column + place.length),
        } | properties
    written = ",".join(f"{key}={_github_escape(value, ':,')}" for key, value in properties.items())
    text = ". ".join(part for part in (diagnostic.summary, diagnostic.label, diagnostic.help) if part)
    return f"::{kind} {written}::{_github_escape(text)}"


def _github_escape(text: str, more: str = "") -> str:
    for char in "%\r\n" + more:
        text = text.replace(char, f"%{ord(char):02X}")
    return safe_text(text)


def as_sarif(diagnostics: Sequence[Diagnostic]) -> dict[str, Any]:
    """A SARIF 2.1.0 log with one run."""
    rules = [{"id": code} for code in sorted({item.code for item in diagnostics})]
    driver = {"name": "quantcfg", "rules": rules}
    return {
        "version": "2.1.0",
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "runs": [{"tool": {"driver": driver}, "results": [_sarif_result(item) for item in diagnostics]}],
    }


def _sarif_result(diagnostic: Diagnostic) -> dict[str, Any]:
    text = ". ".join(part for part in (diagnostic.summary, diagnostic.label, diagnostic.help) if part)
    result: dict[str, Any] = {
        "ruleId": diagnostic.code,
        "level": diagnostic.severity if diagnostic.severity in ("error", "warning") else "note",
        "message": {"text": text},
    }
    if diagnostic.place:
        place = diagnostic.place
        region = {
            "startLine": place.line,
            "startColumn": place.column,
            "endColumn": place.column + place.length,
        }
        location = {"artifactLocation": {"uri": place.file}, "region": region}
        result["locations"] = [{"physicalLocation": location}]
    return result


def render_report(diagnostics: Sequence[Diagnostic], output_format: str) -> str:
    """The findings in ``json``, ``github`` or ``sarif``."""
    if output_format == "github":
        return as_github(diagnostics)
    return json.dumps(as_sarif(diagnostics) if output_format == "sarif" else as_json(diagnostics), indent=2)
