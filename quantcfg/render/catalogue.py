"""Lists of presets, observers and fake quantizes for the terminal, 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from quantcfg.config.catalogue import CatalogueEntry

WIDTH = 80


def format_list(entries: Sequence[CatalogueEntry]) -> str:
    """One line per entry: its name and what it is."""
    width = max((len(entry.name) for entry in entries if len(entry.name) < WIDTH // 4), default=0)
    return "\n".join(_columns(entry.name, entry.doc, width) for entry in entries)


def format_entry(entry: CatalogueEntry) -> str:
    """One entry with all its rows."""
    width = max((len(row.name) for row in entry.rows), default=0)
    lines = [entry.name, *textwrap.wrap(entry.doc, WIDTH, initial_indent="  ", subsequent_indent="  "), ""]
    for row in entry.rows:
        lines.append(_columns(f"  {row.name}", row.value, width + 2))
        if row.doc:
            indent = " " * (width + 4)
            lines += textwrap.wrap(row.doc, WIDTH, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines).rstrip()


def _columns(left: str, right: str, width: int) -> str:
    indent = " " * (width + 2)
    lines = textwrap.wrap(right, WIDTH - len(indent), break_on_hyphens=False) or [""]
    first = f"{left:<{width}}  {lines[0]}".rstrip()
    if len(left) > width:
        return "\n".join([left, *(indent + line for line in lines)])
    return "\n".join([first, *(indent + line for line in lines[1:])])
