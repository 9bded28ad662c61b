"""The config as a tree of values that know their places; YAML, TOML and `--set` all become this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantcfg.config.spec import Scalar
from quantcfg.errors import Place

Loc = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A scalar.

    ``bad`` marks one that has been reported already, so that nothing else complains about it; ``empty`` the
    null of a key that nothing is written behind.
    """

    value: Scalar
    place: Place
    bad: bool = False
    empty: bool = False


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple[Node, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a mapping with its value."""

    key_place: Place
    node: Node


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping, in the order of the file."""

    entries: Mapping[str, Entry]
    place: Place

    def get(self, key: str) -> Node | None:
        """The value of a key, or None when the key is absent."""
        entry = self.entries.get(key)
        return entry.node if entry else None


Node = Leaf | Items | Table
NOWHERE = Place("", 1)
"""The place of what no file holds."""


def as_table(node: Node | None) -> Table:
    """A mapping as it is; an empty one in the place of anything else, or of nothing."""
    return node if isinstance(node, Table) else Table({}, NOWHERE)


def plain(node: Node) -> Any:
    """The same values without places."""
    if isinstance(node, Leaf):
        return node.value
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    return {key: plain(entry.node) for key, entry in node.entries.items()}


def describe(node: Node) -> str:
    """What a value is, for a message: ``the text `8```, ``the number 8``, ``a list``."""
    if isinstance(node, Table):
        return "a mapping"
    if isinstance(node, Items):
        return "a list"
    if node.value is None:
        return "null"
    if isinstance(node.value, bool):
        return str(node.value).lower()
    if isinstance(node.value, str):
        return f"the text `{shortened(node.value)}`" if node.value else "an empty text"
    return f"the number {node.value}"


def shortened(text: str, limit: int = 60) -> str:
    """A text for a message, cut when it is long."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def walk(root: Node, loc: Sequence[str | int]) -> Iterator[tuple[str | int, Place, Node]]:
    """The steps from ``root`` along ``loc``: (key, place of the key, value).

    What is not in the tree is passed over: pydantic puts the tags of unions into a location.
    """
    node = root
    for key in loc:
        if isinstance(node, Table) and isinstance(key, str) and key in node.entries:
            entry = node.entries[key]
            node = entry.node
            yield key, entry.key_place, node
        elif isinstance(node, Items) and isinstance(key, int) and key < len(node.items):
            node = node.items[key]
            yield key, node.place, node


def renamed(table: Table, loc: Sequence[str | int], new: str) -> Table:
    """The tree with the key at ``loc`` renamed, unless there is one of that name."""
    key, *rest = loc
    entries = dict(table.entries)
    entry = entries[str(key)]
    if rest and isinstance(entry.node, Table):
        entries[str(key)] = Entry(entry.key_place, renamed(entry.node, rest, new))
    elif new not in entries:
        entries[new] = entries.pop(str(key))
    return Table(entries, table.place)


def bad_leaves(node: Node) -> bool:
    """Whether something beneath has been reported already."""
    if isinstance(node, Leaf):
        return node.bad
    if isinstance(node, Items):
        return any(bad_leaves(item) for item in node.items)
    return any(bad_leaves(entry.node) for entry in node.entries.values())


def place_in_key(key: str, place: Place, offset: int, length: int) -> Place:
    """The place of a part of a key; that of the whole key where escapes move its characters."""
    quotes = (place.length - len(key)) // 2
    if quotes not in (0, 1):
        return place
    return Place(place.file, place.line, place.column + quotes + offset, max(length, 1))


def key_path(loc: Sequence[str | int]) -> str:
    """A location as people write it: ``qat.optimizer.lr``, ``qconfig.templates[0]``."""
    text = ""
    for key in loc:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text
