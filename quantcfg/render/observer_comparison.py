"""The observers that a calibration compared: the figures of each op, and which one it got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from quantcfg.render.tables import add_numbers, cell, keys_of, new_table, print_table
from quantcfg.render.text import safe_text

_MOST_ROWS = 40
_UNIT = "noise: (sum of squared rounding errors) / (sum of squared values)"


def print_comparison(console: Console, comparison: Mapping[str, Any]) -> None:
    """Print the table of ``result.json`` under ``comparison``, and how often each observer was chosen."""
    rows: Sequence[Mapping[str, Any]] = comparison["ops"]
    if comparison["metrics"]:
        print_table(console, _metrics_table(comparison["metrics"]))
        console.print()
    print_table(console, _noise_table(rows[:_MOST_ROWS], comparison["observers"]))
    if len(rows) > _MOST_ROWS:
        console.print(f"... and {len(rows) - _MOST_ROWS} more rows in result.json")
    chosen = Counter(row["chosen"] for row in rows)
    counts = ", ".join(f"{kind} {chosen[kind]}" for kind in comparison["observers"] if chosen[kind])
    console.print(f"{_UNIT}\nchosen    by {safe_text(comparison['by'])}: {counts} of {len(rows)}\n")


def _noise_table(rows: Sequence[Mapping[str, Any]], observers: Sequence[str]) -> Table:
    table = new_table("op", "", gap=3)
    add_numbers(table, observers)
    table.add_column("chosen")
    for row in rows:
        cells = [_noise(row["noise"].get(kind)) for kind in observers]
        table.add_row(cell(row["op"]), row["slot"], *cells, row["chosen"])
    return table


def _metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> Table:
    table, names = new_table("everywhere", gap=3), keys_of(metrics)
    add_numbers(table, names)
    for kind, values in metrics.items():
        table.add_row(kind, *(f"{values[name]:.4f}" if name in values else "-" for name in names))
    return table


def _noise(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"
