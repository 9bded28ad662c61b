"""Edits of the structure of a config: a key gone, a block in the wrong section, two blocks swapped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quantcfg.config.nodes import Items, Leaf, Node, Table
from quantcfg.errors import Place

INDENT = "  "


@dataclass(frozen=True)
class Block:
    """One entry in block style: its path, and its lines, counted from 0, the last one not included."""

    path: tuple[str, ...]
    node: Node
    first: int
    end: int


@dataclass(frozen=True)
class Edited:
    """A text after an edit, and the line of what was edited, counted from 1; 0: there is none."""

    text: str
    line: int
    path: tuple[str, ...]


def blocks(tree: Table, text: str) -> Iterator[Block]:
    """Every entry that has its lines to itself."""
    lines = text.split("\n")
    for path, place, node in _entries(tree):
        if not lines[place.line - 1][: place.column - 1].strip():
            yield Block(path, node, place.line - 1, _last_line(node))


def without(text: str, block: Block) -> Edited:
    """The entry gone."""
    lines = text.split("\n")
    return Edited("\n".join([*lines[: block.first], *lines[block.end :]]), 0, block.path)


def inline_deletions(tree: Table, text: str) -> Iterator[Edited]:
    """Each entry of a ``{a: 1, b: 2}`` gone that has a scalar as its value."""
    lines = text.split("\n")
    for path, place, node in _entries(tree):
        line = lines[place.line - 1]
        before, after = line[: place.column - 1], line[_end(node) :]
        if not before.strip() or not isinstance(node, Leaf):
            continue
        shorter = before + after.lstrip(", ") if before.endswith("{") else before.removesuffix(", ") + after
        yield Edited("\n".join([*lines[: place.line - 1], shorter, *lines[place.line :]]), 0, path)


def shifted(text: str, block: Block, step: int) -> Edited:
    """The entry with all beneath it two columns to the left (-1) or right (1)."""
    lines = text.split("\n")
    moved = [
        line.removeprefix(INDENT) if step < 0 else INDENT + line for line in lines[block.first : block.end]
    ]
    return Edited(
        "\n".join([*lines[: block.first], *moved, *lines[block.end :]]), block.first + 1, block.path
    )


def at_the_end(text: str, block: Block) -> Edited:
    """The entry at the top level, beneath all else."""
    lines = text.rstrip("\n").split("\n")
    indent = len(lines[block.first]) - len(lines[block.first].lstrip())
    moved = [line[indent:] for line in lines[block.first : block.end]]
    kept = [*lines[: block.first], *lines[block.end :]]
    return Edited("\n".join([*kept, *moved]), len(kept) + 1, block.path)


def swapped(text: str, a: Block, b: Block) -> Edited:
    """Two neighbours in the other order."""
    lines = text.split("\n")
    between = lines[a.end : b.first]
    new = [*lines[b.first : b.end], *between, *lines[a.first : a.end]]
    return Edited("\n".join([*lines[: a.first], *new, *lines[b.end :]]), a.first + 1, b.path)


def neighbours(found: list[Block]) -> Iterator[tuple[Block, Block]]:
    """Entries that follow each other in the same mapping."""
    last: dict[tuple[str, ...], Block] = {}
    for block in found:
        if (previous := last.get(block.path[:-1])) is not None:
            yield previous, block
        last[block.path[:-1]] = block


def _entries(node: Node, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Place, Node]]:
    if isinstance(node, Table):
        for key, entry in node.entries.items():
            yield (*path, key), entry.key_place, entry.node
            yield from _entries(entry.node, (*path, key))


def _last_line(node: Node) -> int:
    if isinstance(node, Leaf):
        return node.place.line
    values = node.items if isinstance(node, Items) else [entry.node for entry in node.entries.values()]
    return max([node.place.line, *map(_last_line, values)])


def _end(node: Node) -> int:
    return node.place.column - 1 + node.place.length
