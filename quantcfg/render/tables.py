"""What reports are laid out with: tables without lines, and lines, of text that cannot steer the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantcfg.render.text import safe_text


def cell(text: str) -> Text:
    """Text as it stands, whatever rich would read in it."""
    return Text(safe_text(text))


def new_table(*columns: str, gap: int = 2) -> Table:
    """A table without lines whose ``columns`` fold what is too wide; ``gap`` is what lies between two."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for column in columns:
        table.add_column(cell(column), overflow="fold")
    return table


def keys_of(rows: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Every key of some rows, of which any may lack some."""
    return list(dict.fromkeys(key for row in rows.values() for key in row))


def add_numbers(table: Table, columns: Iterable[str]) -> None:
    """Add columns of numbers, which stand on the right."""
    for column in columns:
        table.add_column(cell(column), justify="right", no_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Print ``table``; in a file or pipe without the spaces that pad its lines."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    console.file.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def print_line(console: Console, text: str) -> None:
    """Print a line, which the terminal wraps where it likes."""
    console.print(cell(text), soft_wrap=True)


def print_facts(console: Console, facts: Iterable[tuple[str, str]], *, width: int) -> None:
    """Print a line for each fact, its name in a column of ``width``."""
    for name, text in facts:
        print_line(console, f"{name:<{width}} {text}")


def print_beside(console: Console, texts: Iterable[tuple[str, str]], *, width: int) -> None:
    """Print texts beside their names; on a terminal what is too long goes on below where it began."""
    for name, text in texts:
        whole, room = cell(text), max(console.width - width - 1, 1)
        for number, line in enumerate(whole.wrap(console, room) if console.is_terminal else [whole]):
            line.rstrip()
            console.print(Text.assemble(f"{'' if number else name:<{width}} ", line), soft_wrap=True)
