"""The template `sensitive_ops`: rules for the ops that a sensitivity table puts first.

A table is a list of rows ``[op, "activation" | "weight", op type, metric, dtype, ...]``, the worst first, as
the reference toolkit's sensitivity analysis orders it; only the first two are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from quantcfg.config.collect import Findings
from quantcfg.config.layers import RULE_SECTIONS
from quantcfg.config.nodes import Entry, Items, Leaf, Node, Table, describe, shortened
from quantcfg.config.patterns import is_exact
from quantcfg.config.qconfigs import Broken, QConfigReader
from quantcfg.config.rules import Rule
from quantcfg.config.source import YAML_SUFFIXES, Stop, parse, read_file
from quantcfg.errors import UsageError

SUFFIXES = (".json", *YAML_SUFFIXES)
TYPES = ("activation", "weight")
_DTYPE_COLUMN = 4


def with_tables(tree: Table, findings: Findings) -> tuple[Table, tuple[Path, ...]]:
    """The tree with the rows of every table that it names as a file, and those files.

    A table is looked for beside the config that names it. Its rows keep their places in its own file.
    """
    reader = _TableReader(findings)
    for section in RULE_SECTIONS:
        tree = _changed(tree, (*section, "templates"), reader.read_in)
    return tree, tuple(reader.files)


def _changed(table: Table, path: tuple[str, ...], change: Callable[[Node], Node]) -> Table:
    """The same table with the value at ``path``, if there is one, put through ``change``."""
    key, *rest = path
    entry = table.entries.get(key)
    if entry is None or (rest and not isinstance(entry.node, Table)):
        return table
    node = entry.node
    node = _changed(node, tuple(rest), change) if rest and isinstance(node, Table) else change(node)
    return Table({**table.entries, key: Entry(entry.key_place, node)}, table.place)


class _TableReader:
    """Reads table files, each once."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.files: dict[Path, Node] = {}

    def read_in(self, templates: Node) -> Node:
        """A list of templates with rows in the place of names of files."""
        items = templates.items if isinstance(templates, Items) else ()
        read = (_changed(item, ("table",), self._rows) if isinstance(item, Table) else item for item in items)
        return Items(tuple(read), templates.place) if isinstance(templates, Items) else templates

    def _rows(self, named: Node) -> Node:
        if not isinstance(named, Leaf) or not isinstance(named.value, str) or named.bad:
            return named
        path = Path(named.place.file).parent / named.value
        if path not in self.files:
            self.files[path] = self._file(path, named)
        return self.files[path]

    def _file(self, path: Path, named: Leaf) -> Node:
        try:
            rows = parse(str(path), read_file(path, SUFFIXES, "a sensitivity table"), self.findings)
        except UsageError as error:
            summary = f"`table`: {shortened(str(error), 200)}"
            self.findings.error("QC108", summary, named.place, help=error.hint)
        except Stop:
            pass
        else:
            return rows
        return Leaf(named.value, named.place, bad=True)


def sensitive_rules(templates: Node | None, reader: QConfigReader) -> Iterator[Rule]:
    """One rule for each op that the tables among the templates choose; what is broken is reported."""
    for item in templates.items if isinstance(templates, Items) else ():
        rows, use = (item.get("table"), item.get("use")) if isinstance(item, Table) else (None, None)
        if not isinstance(item, Table) or not isinstance(rows, Items) or use is None:
            continue
        try:
            draft = reader.read(use)
        except Broken:
            continue
        for name in _chosen(item, rows, reader.findings):
            yield Rule(
                kind="template",
                pattern=str(name.value),
                spec=draft.spec if draft and not draft.inherits else None,
                place=name.place,
                inherit=draft.inherited if draft else None,
            )


def _chosen(item: Table, rows: Items, findings: Findings) -> list[Leaf]:
    """The names of the ops that a table puts first, filtered by type and dtype before they are counted."""
    wanted, dtype = _value(item, "sensitive_type", TYPES[0]), _value(item, "origin_dtype", None)
    named: dict[object, Leaf] = {}
    for row in rows.items:
        name, kind = _head(row, findings)
        if name is not None and kind == wanted and (dtype is None or _dtype(row) in (None, dtype)):
            named.setdefault(name.value, name)
    topk, ratio = _value(item, "topk", None), _value(item, "ratio", None)
    share = ratio if isinstance(ratio, int | float) else 0
    count = topk if isinstance(topk, int) else math.ceil(len(named) * share)
    return list(named.values())[: max(count, 0)]


def _head(row: Node, findings: Findings) -> tuple[Leaf | None, object]:
    """The op and the type of a row; no op where the row is none, which is reported."""
    columns = row.items if isinstance(row, Items) else ()
    name, kind = (*columns, None, None)[:2]
    if not isinstance(kind, Leaf) or kind.value not in TYPES:
        got = describe(row) if kind is None else describe(kind)
        summary = f"a row is `[op, activation or weight, ...]`, got {got}"
        findings.error("QC103", summary, (kind or row).place, label="not a row of a sensitivity table")
    elif not isinstance(name, Leaf) or not isinstance(name.value, str) or not is_exact(name.value or "*"):
        summary = f"a row starts with the name of an op, got {describe(columns[0])}"
        findings.error("QC103", summary, columns[0].place, label="not the name of an op")
    else:
        return name, kind.value
    return None, None


def _dtype(row: Node) -> object:
    """The dtype of a row; None where the row is too short to have one."""
    columns = row.items if isinstance(row, Items) else ()
    node = columns[_DTYPE_COLUMN] if len(columns) > _DTYPE_COLUMN else None
    return node.value if isinstance(node, Leaf) else None


def _value(item: Table, key: str, default: object) -> object:
    node = item.get(key)
    return node.value if isinstance(node, Leaf) and not node.bad else default
