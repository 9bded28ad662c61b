"""`--set path.to.key=value`: one value of the merged config, written on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantcfg.config.collect import Findings
from quantcfg.config.layers import is_free
from quantcfg.config.nodes import Entry, Table, describe, key_path, shortened
from quantcfg.config.source import CONTROL, MAX_DEPTH, Stop
from quantcfg.config.yaml_source import parse_yaml
from quantcfg.errors import Place

NAME = "--set"
"""How messages call the command line, as if the overrides were the lines of a file."""
FIXED = ("version", "extends")
_PART = re.compile(r'"([^"]+)"|([^."]+)')


def apply_overrides(tree: Table, overrides: Sequence[str], findings: Findings) -> Table:
    """The tree with every override written into it, in order."""
    lines = [CONTROL.sub(" ", text.replace("\n", " ").replace("\r", " ")) for text in overrides]
    findings.sources[NAME] = "\n".join(lines)
    for number, line in enumerate(lines, 1):
        try:
            tree = _apply(tree, line, number, findings)
        except Stop:
            continue
    return tree


def _apply(tree: Table, line: str, number: int, findings: Findings) -> Table:
    path_text, equals, value_text = line.partition("=")
    if not equals or not path_text.strip():
        place = Place(NAME, number, 1, max(len(line), 1))
        summary = f"`--set {shortened(line)}` is not of the form path.to.key=value"
        findings.error("QC111", summary, place, help="for example --set qat.epochs=5")
        raise Stop
    parts = _parts(tree, path_text.rstrip(), number, findings)
    if parts[0][0] in FIXED:
        summary = f"`{parts[0][0]}` belongs to a file and cannot be set"
        findings.error("QC110", summary, parts[0][1], help="change it in the file")
        raise Stop
    column = len(path_text) + 1
    if not value_text.strip():
        place = Place(NAME, number, 1, max(len(line), 1))
        summary = f"`--set {shortened(line)}` has no value"
        findings.error("QC111", summary, place, help="write null to clear it")
        raise Stop
    value = parse_yaml(NAME, value_text, findings, start=Place(NAME, number, column + 1))
    return _write(tree, parts, Entry(parts[-1][1], value), (), findings)


Part = tuple[str, Place]


def _parts(tree: Table, text: str, number: int, findings: Findings) -> list[Part]:
    """The keys of a path. Where keys are names, with dots in them, the longest that exists is taken."""
    parts: list[Part] = []
    offset, node = 0, tree
    while offset < len(text):
        keys = tuple(key for key, _ in parts)
        name, length = _next_part(node, text[offset:], is_free(keys))
        place = Place(NAME, number, offset + 1, max(length, 1))
        if not name:
            findings.error("QC111", f"`--set {shortened(text)}`: an empty key", place)
            raise Stop
        parts.append((name, place))
        if len(parts) > MAX_DEPTH:
            findings.error("QC004", f"nested deeper than {MAX_DEPTH} levels", place)
            raise Stop
        following = node.get(name)
        node = following if isinstance(following, Table) else Table({}, place)
        offset += length + 1
    return parts


def _next_part(node: Table, rest: str, free: bool) -> tuple[str, int]:
    if free and not rest.startswith('"'):
        known = [key for key in node.entries if rest == key or rest.startswith(f"{key}.")]
        name = max(known, key=len, default=rest)
        return name, len(name)
    match = _PART.match(rest)
    return (match[1] or match[2], match.end()) if match else ("", 0)


def _write(tree: Table, parts: list[Part], entry: Entry, path: tuple[str, ...], findings: Findings) -> Table:
    (key, place), *rest = parts
    entries = dict(tree.entries)
    here = (*path, key)
    if not rest:
        entries[key] = entry
        return Table(entries, tree.place)
    old = entries.get(key)
    below = old.node if old else Table({}, place)
    if not isinstance(below, Table):
        summary = f"`{key_path(here)}` is {describe(below)}, there is no `{rest[0][0]}` in it"
        findings.error("QC110", summary, rest[0][1], help=f"set `{key_path(here)}` itself")
        raise Stop
    entries[key] = Entry(old.key_place if old else place, _write(below, rest, entry, here, findings))
    return Table(entries, tree.place)
