"""YAML text to a tree with places, on the events of PyYAML's parser; the budget is kept while they come."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

import yaml

from quantcfg.config.collect import Findings
from quantcfg.config.nodes import Entry, Items, Leaf, Node, Table, shortened
from quantcfg.config.scalars import ScalarError, read_plain
from quantcfg.config.source import MAX_ALIASES, MAX_DEPTH, MAX_NODES, Stop
from quantcfg.errors import Place

# libyaml keeps its state on the heap, so depth cannot overflow a stack; the pure parser is the fallback.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STANDARD_TAG = "tag:yaml.org,2002:"
_KEY = re.compile(r"( *)(?:[\w.*?{},-]+|\"[^\"]*\"|'[^']*'):(?: |$)")
_CLOSED_BY = {"[": "]", "{": "}", '"': '"', "'": "'"}


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not come yet."""

    place: Place
    anchor: str | None
    is_table: bool
    size: int = 1
    entries: dict[str, Entry] = field(default_factory=dict)
    items: list[Node] = field(default_factory=list)
    key: tuple[str, Place] | None = None

    def close(self) -> Node:
        return Table(self.entries, self.place) if self.is_table else Items(tuple(self.items), self.place)


def parse_yaml(name: str, text: str, findings: Findings, *, start: Place | None = None) -> Node:
    """Build the tree of one YAML document; ``start`` is where a text begins that is part of another.

    Raises:
        Stop: not YAML, a feature that configs do without, or over the budget.
    """
    start = start or Place(name, 1)
    composer = _Composer(start, text, findings)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            composer.feed(event)
    except yaml.MarkedYAMLError as error:
        composer.report_syntax(error)
        raise Stop from None
    if composer.root is None:
        findings.error("QC007", "the file is empty", start, help="a config starts with `version: 1`")
        raise Stop
    return composer.root


class _Composer:
    """Puts events together with a stack of its own, so that deep input cannot exhaust Python's."""

    def __init__(self, start: Place, text: str, findings: Findings) -> None:
        self.start = start
        self.lines = text.split("\n")
        self.findings = findings
        self.root: Node | None = None
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.nodes = self.aliases = self.documents = 0

    def feed(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._open(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            closed = self.stack.pop()
            self._value(closed.close(), closed.size, closed.anchor)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self._stop(
                    "QC005", "a second document starts here", self._place(event), "one file, one config"
                )

    def _open(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        place = self._place(event)
        self._refuse_tag(event, place)
        self._refuse_as_key(place)
        if len(self.stack) >= MAX_DEPTH:
            self._stop("QC004", f"nested deeper than {MAX_DEPTH} levels", place)
        self._count(1, place)
        self.stack.append(_Open(place, event.anchor, isinstance(event, yaml.MappingStartEvent)))

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        place = self._place(event)
        self._refuse_tag(event, place)
        if self._wants_key():
            self._key(event, place)
            return
        try:
            value = read_plain(event.value) if not event.style else event.value
            leaf = Leaf(value, place, empty=not event.value and not event.style)
        except ScalarError as error:
            self.findings.error("QC006", str(error), place, help=error.hint)
            leaf = Leaf(None, place, bad=True)
        self._count(1, place)
        self._value(leaf, 1, event.anchor)

    def _key(self, event: yaml.ScalarEvent, place: Place) -> None:
        if event.value == "<<" and not event.style:
            advice = "name what is shared under `qconfigs`, or put it into a file that `extends` names"
            self._stop("QC005", "merge keys (`<<`) are not used here", place, advice)
        self.stack[-1].key = (event.value, place)
        self._count(1, place)

    def _alias(self, event: yaml.AliasEvent) -> None:
        place = self._place(event)
        self._refuse_as_key(place)
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            self._stop("QC004", f"more than {MAX_ALIASES} aliases", place)
        anchor = event.anchor or ""
        if any(level.anchor == anchor for level in self.stack):
            self._stop("QC005", f"`*{shortened(anchor)}` is inside of what it names", place)
        if anchor not in self.anchors:
            self._stop("QC005", f"no `&{shortened(anchor)}` comes before this alias", place)
        node, size = self.anchors[anchor]
        self._count(size, place)
        self._value(node, size, None)

    def _value(self, node: Node, size: int, anchor: str | None) -> None:
        if anchor is not None:
            self.anchors[anchor] = (node, size)
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        parent.size += size
        if not parent.is_table:
            parent.items.append(node)
        elif parent.key is not None:
            self._entry(parent, *parent.key, node)
            parent.key = None

    def _entry(self, parent: _Open, key: str, key_place: Place, node: Node) -> None:
        first = parent.entries.get(key)
        if first is None or self.findings.full:
            parent.entries[key] = Entry(key_place, node)
            return
        self.findings.doubled.add(first.node.place)
        self.findings.error(
            "QC003",
            f"the key `{shortened(key)}` appears twice",
            key_place,
            label="second here",
            related=((first.key_place, "first here"),),
            help="keep one of them",
        )

    def _wants_key(self) -> bool:
        return bool(self.stack) and self.stack[-1].is_table and self.stack[-1].key is None

    def _count(self, nodes: int, place: Place) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            self._stop(
                "QC004", f"more than {MAX_NODES} values, aliases counted as often as they are used", place
            )

    def _refuse_as_key(self, place: Place) -> None:
        if self._wants_key():
            self._stop("QC005", "a key must be a plain text", place)

    def _refuse_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, place: Place) -> None:
        if event.tag is not None:
            advice = "remove it; quote a value that is meant as text"
            tag = event.tag.replace(_STANDARD_TAG, "!!", 1)
            self._stop("QC005", f"tags such as `{shortened(tag)}` are not used here", place, advice)

    def _stop(self, code: str, summary: str, place: Place, advice: str = "") -> NoReturn:
        self.findings.error(code, summary, place, help=advice)
        raise Stop

    def _place(self, event: yaml.Event) -> Place:
        start, end = event.start_mark, event.end_mark
        if start is None or end is None:
            return self.start
        length = end.column - start.column
        if end.line != start.line:
            is_text = isinstance(event, yaml.ScalarEvent)
            length = len(self.lines[start.line].rstrip()) - start.column if is_text else 1
        return self._at(start.line, start.column, length)

    def _at(self, line: int, column: int, length: int = 1) -> Place:
        """The place of a line and column that count from 0."""
        shift = self.start.column - 1 if line == 0 else 0
        return Place(self.start.file, self.start.line + line, column + shift + 1, max(length, 1))

    def _is_at_end(self, mark: yaml.Mark | None) -> bool:
        return mark is not None and not any(line.strip() for line in self.lines[mark.line :])

    def report_syntax(self, error: yaml.MarkedYAMLError) -> None:
        """Say what PyYAML said, where it said it, and what the usual mistake behind it is."""
        mark = error.problem_mark or error.context_mark
        if error.context_mark and (self._is_at_end(mark) or "end of stream" in (error.problem or "")):
            mark = error.context_mark  # where it starts says more than where the file ends
        line = min(mark.line, len(self.lines) - 1) if mark else 0
        if advice := indentation_advice(self.lines, line):
            column = len(self.lines[line]) - len(self.lines[line].lstrip())
            place = self._at(line, column, len(self.lines[line].strip()))
            self.findings.error("QC001", "not valid YAML: the indentation does not fit", place, help=advice)
            return
        problem = error.problem or "it cannot be read"
        context = error.context_mark
        self.findings.error(
            "QC001",
            f"not valid YAML: {problem}",
            self._at(line, mark.column if mark else 0),
            notes=(f"{error.context}, line {self._at(context.line, 0).line}",) if context else (),
            help=_advice(f"{error.context}: {problem}", self.lines[line]),
        )


def indentation_advice(lines: list[str], index: int) -> str:
    """What is wrong with the indentation of a line, given those above it; empty when it is not that."""
    indent = _indent(lines[index])
    above = [number for number in range(index) if lines[number].strip() and lines[number].strip()[0] != "#"]
    if indent is None or not above:
        return ""
    previous = _indent(lines[above[-1]])
    if previous is None:
        return ""
    if indent > previous and _has_value(lines[above[-1]]):
        return f"line {above[-1] + 1} above has its value already: indent both alike"
    levels = {0} | {level for number in above if (level := _indent(lines[number])) is not None}
    if indent < previous and indent not in levels:
        known = " or ".join(map(str, sorted(level for level in levels if level <= previous)))
        return f"it is indented by {indent}, the lines above it by {known}"
    return ""


def _indent(line: str) -> int | None:
    """The columns before a key in block style; None for a line that is something else."""
    match = _KEY.match(line)
    return len(match[1]) if match else None


def _has_value(line: str) -> bool:
    rest = line.partition(": ")[2].partition(" #")[0].strip()
    is_open = rest[:1] in _CLOSED_BY and not rest[1:].endswith(_CLOSED_BY[rest[0]])
    return bool(rest) and rest[0] not in "#&|>" and not is_open


def _advice(problem: str, line: str) -> str:
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "indent with spaces: YAML does not allow tabs there"
    if "scanning a quoted scalar" in problem:
        return "is a quote missing at the end of the text?"
    if "mapping values are not allowed" in problem:
        return "is a key above indented differently, or does a value with `: ` need quotes?"
    if "could not find expected ':'" in problem:
        return "is a `:` after the key missing?"
    if "alphabetic or numeric" in problem and line.lstrip().startswith("*"):
        return 'quote a pattern that starts with `*`: "*.conv"'
    if "cannot start any token" in problem:
        return "quote the value"
    if "expected ',' or" in problem:
        return f"is it closed by `{problem[-2]}`?"
    return ""
