"""The config that counts, as one YAML text: without `extends` and `--set`, each value with its origin."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from quantcfg.config.layers import VERSION
from quantcfg.config.nodes import Items, Leaf, Node, Table
from quantcfg.config.scalars import read_plain
from quantcfg.config.source import STEERING
from quantcfg.config.spec import Scalar
from quantcfg.errors import Place

_WORD = re.compile(r"[A-Za-z_][\w.+-]*( [\w.+-]+)*", re.ASCII)
_OTHERS = {"y", "n", "yes", "no", "on", "off"}  # truth to other readers of YAML, text to this one
_INDENT = "  "
_WIDEST = 60  # columns: origins stand no further right than this, unless their line is longer


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    place: Place | None = None


def resolved_text(tree: Table, *, origins: bool = True) -> str:
    """The text of a merged config; it loads to the same rules and settings as what it was made from.

    Args:
        tree: what `load_config` has made of files and overrides.
        origins: whether each value is followed by a comment that says in which file and line it stands.
    """
    entries = {key: entry for key, entry in tree.entries.items() if key != "version"}
    lines = [_Line(f"version: {VERSION}"), *_table(Table(entries, tree.place), 0)]
    if not origins:
        return "".join(f"{line.text}\n" for line in lines)
    column = max(len(line.text) for line in lines if len(line.text) <= _WIDEST)
    return "".join(f"{_with_origin(line, column)}\n" for line in lines)


def _with_origin(line: _Line, column: int) -> str:
    if line.place is None or not line.place.file:
        return line.text
    where = line.place.file if line.place.file.startswith("--") else f"{line.place.file}:{line.place.line}"
    return f"{line.text:<{column}}  # {STEERING.sub('?', where)}"


def _table(table: Table, depth: int) -> Iterator[_Line]:
    for key, entry in table.entries.items():
        yield from _value(f"{_INDENT * depth}{scalar_text(key)}:", entry.node, depth)


def _value(head: str, node: Node, depth: int) -> Iterator[_Line]:
    """A value behind ``head``: on its line where that is possible, indented beneath it where it is not."""
    flow = _flow(node)
    if flow is not None:
        yield _Line(f"{head} {flow}", node.place)
        return
    yield _Line(head)
    if isinstance(node, Table):
        yield from _table(node, depth + 1)
    elif isinstance(node, Items):
        for item in node.items:
            yield from _value(f"{_INDENT * (depth + 1)}-", item, depth + 1)


def _flow(node: Node) -> str | None:
    """A value that fits on one line: a scalar, a list of scalars, or nothing at all."""
    if isinstance(node, Leaf):
        return scalar_text(node.value)
    if isinstance(node, Table):
        return None if node.entries else "{}"
    if not all(isinstance(item, Leaf) for item in node.items):
        return None
    return f"[{', '.join(scalar_text(item.value) for item in node.items if isinstance(item, Leaf))}]"


def scalar_text(value: Scalar) -> str:
    """A scalar as YAML, which this reader and those of YAML 1.1 take for the same."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, int):
        return str(value)
    is_plain = _WORD.fullmatch(value) and value.lower() not in _OTHERS and read_plain(value) == value
    return value if is_plain else STEERING.sub(_escaped, json.dumps(value, ensure_ascii=False))


def _float_text(value: float) -> str:
    """With a point and a signed exponent, without which it is a text in YAML 1.1."""
    digits, e, exponent = repr(value).partition("e")
    return f"{digits if '.' in digits else f'{digits}.0'}{e}{exponent}"


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
