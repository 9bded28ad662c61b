"""One tree from several: a file, what it extends, and `--set`; every value keeps its place."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from quantcfg.config.collect import Findings
from quantcfg.config.nodes import NOWHERE, Entry, Items, Leaf, Node, Table, describe, shortened
from quantcfg.config.presets import PRESETS
from quantcfg.config.source import SUFFIXES, Stop, parse, read_bytes
from quantcfg.config.suggest import nearest
from quantcfg.errors import Place, UsageError

MAX_FILES = 64
VERSION = 1
RULE_TABLES = ("module_type", "module_name")
RULE_SECTIONS = (("qconfig",), ("calib", "qconfig"), ("qat", "qconfig"))
"""Where rules stand: those of both stages, and those of each."""


def is_free(path: tuple[str, ...]) -> bool:
    """Whether the keys of the mapping at ``path`` are names of the user's."""
    if path in (("qconfigs",), ("guards", "metric_drop"), ("guards", "ops")):
        return True
    return bool(path) and path[-1] in RULE_TABLES and path[:-1] in RULE_SECTIONS


def is_qconfig(path: tuple[str, ...]) -> bool:
    """Whether the value at ``path`` is a qconfig, which a later layer replaces whole."""
    return is_free(path[:-1]) or (bool(path) and path[-1] == "global" and path[:-1] in RULE_SECTIONS)


@dataclass(slots=True)
class Loader:
    """Reads files and what they extend, each once, deepest first."""

    findings: Findings
    layers: list[Table] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    unread: bool = False
    _done: set[Path] = field(default_factory=set)

    def add(self, path: Path) -> None:
        """Read one file of the command line with everything it extends.

        Raises:
            UsageError: the file cannot be read.
        """
        self._read(path, read_bytes(path), ())

    def _read(self, path: Path, data: bytes, chain: tuple[Path, ...]) -> None:
        real = path.resolve()
        if real in self._done:
            return
        self._done.add(real)
        self.files.append(path)
        try:
            tree = parse(str(path), data, self.findings)
        except Stop:
            self.unread = True
            return
        if not isinstance(tree, Table):
            self.findings.error(
                "QC007",
                f"a config is a mapping, this is {describe(tree)}",
                tree.place,
                help="start with `version: 1`",
            )
            return
        tree = without_notes(tree)
        for item in self._extended(tree):
            self._extend(path, item, (*chain, real))
        self.layers.append(self._checked_version(tree))

    def _checked_version(self, tree: Table) -> Table:
        """The tree without `extends`; a file without a version is told so, wherever it is used from."""
        if not any(nearest(key, ["version"]) for key in tree.entries):
            self.findings.error(
                "QC102",
                "the key `version` is missing",
                Place(tree.place.file, 1),
                label="`version` is missing here",
                help="add `version: 1` as the first line",
            )
        version = tree.get("version")
        if isinstance(version, Leaf) and version.bad:
            return _without_extends(tree)
        if version is not None and (not isinstance(version, Leaf) or repr(version.value) != str(VERSION)):
            self._refuse_version(version)
        return _without_extends(tree)

    def _refuse_version(self, version: Node) -> None:
        value = version.value if isinstance(version, Leaf) else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        advice = ", or install the quantcfg it was written for" if is_number else ""
        advice = ", without quotes" if value == str(VERSION) else advice
        self.findings.error(
            "QC106",
            f"config version {value} is not known"
            if is_number
            else f"the version of a config is a number, this is {describe(version)}",
            version.place,
            label=f"this quantcfg reads version {VERSION}",
            help=f"write `version: {VERSION}`{advice}",
        )

    def _extended(self, tree: Table) -> list[Leaf]:
        node = tree.get("extends")
        items = node.items if isinstance(node, Items) else () if node is None else (node,)
        good = []
        for item in items:
            if isinstance(item, Leaf) and isinstance(item.value, str) and item.value:
                good.append(item)
            elif not (isinstance(item, Leaf) and item.bad):
                summary = f"`extends`: expected the name of a file or preset, got {describe(item)}"
                self.findings.error("QC103", summary, item.place)
        return good

    def _extend(self, parent: Path, item: Leaf, chain: tuple[Path, ...]) -> None:
        name = str(item.value)
        if not name.endswith(SUFFIXES):
            self._extend_preset(name, item)
            return
        path = parent.parent / name
        try:
            real = path.resolve()
            if real in chain:
                self._report_cycle(item, (*chain[chain.index(real) :], real))
                return
            if len(self.files) >= MAX_FILES:
                self.findings.error("QC004", f"more than {MAX_FILES} files", item.place)
                return
            data = read_bytes(path)
        except (UsageError, OSError, ValueError) as error:
            hint = error.hint if isinstance(error, UsageError) else ""
            self.findings.error("QC108", f"`extends`: {shortened(str(error), 200)}", item.place, help=hint)
            self.unread = True
            return
        self._read(path, data, chain)

    def _extend_preset(self, name: str, item: Leaf) -> None:
        if name in PRESETS:
            value = Leaf(name, item.place)
            rules = Table({"global": Entry(item.place, value)}, item.place)
            self.layers.append(Table({"qconfig": Entry(item.place, rules)}, item.place))
            return
        near = nearest(name, PRESETS)
        self.findings.error(
            "QC108",
            f"`extends`: `{shortened(name)}` is neither a file nor a preset",
            item.place,
            label=f"did you mean `{near}`?" if near else "",
            help="a file ends in .yaml, .yml or .toml; `quantcfg presets` lists the presets",
        )

    def _report_cycle(self, item: Leaf, chain: tuple[Path, ...]) -> None:
        names = " -> ".join(path.name for path in chain)
        self.findings.error(
            "QC109", f"`extends` goes in a circle: {names}", item.place, label="back to the start"
        )

    def merged(self) -> Table:
        """All layers as one; a later one wins, key by key, and a qconfig is replaced whole."""
        result = Table({}, NOWHERE)
        for layer in self.layers:
            result = merge(result, layer)
        return result


def _without_extends(tree: Table) -> Table:
    return Table({key: entry for key, entry in tree.entries.items() if key != "extends"}, tree.place)


def merge(below: Table, above: Table, path: tuple[str, ...] = ()) -> Table:
    """``above`` over ``below``. A rule that is given again moves to the end, where a later rule stands."""
    entries = dict(below.entries)
    for key, entry in above.entries.items():
        old = entries.get(key)
        here = (*path, key)
        if old and isinstance(old.node, Table) and isinstance(entry.node, Table) and not is_qconfig(here):
            entry = Entry(entry.key_place, merge(old.node, entry.node, here))  # noqa: PLW2901
        elif is_free(path):
            entries.pop(key, None)
        entries[key] = entry
    return Table(entries, above.place)


def without_notes(table: Table, path: tuple[str, ...] = ()) -> Table:
    """The tree without the keys that start with ``x-``, except where all keys are names of the user's."""
    entries = {}
    for key, entry in table.entries.items():
        if key.startswith("x-") and not is_free(path):
            continue
        entries[key] = Entry(entry.key_place, _without_notes(entry.node, (*path, key)))
    return Table(entries, table.place)


def _without_notes(node: Node, path: tuple[str, ...]) -> Node:
    return without_notes(node, path) if isinstance(node, Table) else node
