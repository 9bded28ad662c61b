"""TOML text to a tree with places: values from `tomllib`, positions from a scan of the same text."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import Any, NoReturn

from quantcfg.config.collect import Findings
from quantcfg.config.nodes import Entry, Items, Leaf, Loc, Node, Table, shortened
from quantcfg.config.scalars import ScalarError, checked_float, in_64_bits
from quantcfg.config.source import MAX_DEPTH, MAX_NODES, Stop, place_at
from quantcfg.config.toml_scan import KEY, Scan, scan
from quantcfg.errors import Place

# Strings first, so that brackets and digits inside them are not seen.
_TOKENS = re.compile(
    r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|(?P<long>[0-9][0-9_]{30,})'
    r"|(?P<open>[\[{])|(?P<close>[\]}])|(?P<value>[,=])",
    re.DOTALL,
)
_COSTS = {"=": 2, ",": 1, "[": 1, "{": 1}
"""How many nodes a token stands for: an assignment is a key and a value."""

_DEEP_KEY = re.compile(rf"(?:^|[\[{{,])[ \t]*(?:{KEY}[ \t]*\.[ \t]*){{{MAX_DEPTH}}}")
_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)")


def parse_toml(name: str, text: str, findings: Findings) -> Node:
    """Build the tree of one TOML document. TOML has no null: the text ``"null"`` stands for it.

    Raises:
        Stop: not TOML, or over the budget.
    """
    _check_budget(name, text, findings)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        _report_syntax(name, text, str(error), findings)
    except (ValueError, RecursionError) as error:
        findings.error("QC001", f"not valid TOML: {error}", Place(name, 1))
        raise Stop from None
    if not data:
        findings.error(
            "QC007", "the file is empty", Place(name, 1), help="a config starts with `version = 1`"
        )
        raise Stop
    return _Builder(name, text, scan(text), findings).node(data, ())


def _check_budget(name: str, text: str, findings: Findings) -> None:
    _refuse_deep_keys(name, text, findings)
    depth = values = 0
    for token in _TOKENS.finditer(text):
        values += _COSTS.get(token[0], 0)
        if values > MAX_NODES:
            place = place_at(name, text, token.start())
            findings.error("QC004", f"more than {MAX_NODES} values", place)
            raise Stop
        if token["open"]:
            depth += 1
        elif token["close"]:
            depth -= 1
        if depth > MAX_DEPTH:
            findings.error(
                "QC004", f"nested deeper than {MAX_DEPTH} levels", place_at(name, text, token.start())
            )
            raise Stop
        if token["long"]:
            place = place_at(name, text, token.start(), len(token["long"]))
            findings.error("QC006", "the number does not fit into 64 bits", place)
            raise Stop


def _refuse_deep_keys(name: str, text: str, findings: Findings) -> None:
    """Refuse ``a.a.a...``, for which `tomllib` takes memory by the square of its length."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") >= MAX_DEPTH and (found := _DEEP_KEY.search(line)):
            place = Place(name, number, found.start() + 1)
            findings.error("QC004", f"nested deeper than {MAX_DEPTH} levels", place)
            raise Stop


def _report_syntax(name: str, text: str, message: str, findings: Findings) -> NoReturn:
    duplicate = scan(text).duplicate
    if duplicate and ("overwrite" in message or "twice" in message or "Cannot" in message):
        loc, first, second = duplicate
        findings.error(
            "QC003",
            f"the key `{shortened(str(loc[-1]))}` appears twice",
            place_at(name, text, second[0], second[1] - second[0]),
            label="second here",
            related=((place_at(name, text, first[0], first[1] - first[0]), "first here"),),
            help="keep one of them",
        )
        raise Stop
    found = _AT.search(message)
    line, column = (int(found[1]), int(found[2])) if found and found[1] else _end(text)
    summary = _AT.sub("", message)
    advice = _advice(summary, text.split("\n")[line - 1])
    summary = f"not valid TOML: {summary[:1].lower()}{summary[1:]}"
    findings.error("QC001", summary, Place(name, line, column), help=advice)
    raise Stop


def _advice(problem: str, line: str) -> str:
    if "Expected '='" in problem and ":" in line:
        return "TOML writes `key = value`; is this YAML?"
    value = line.partition("=")[2].strip()
    if problem == "Invalid value" and re.match(r"[A-Za-z_]", value):
        return f'texts are quoted in TOML: "{shortened(value)}"'
    return ""


def _end(text: str) -> tuple[int, int]:
    lines = text.rstrip("\n").split("\n")
    return len(lines), len(lines[-1]) + 1


class _Builder:
    """Joins the values with the places that the scan found for them."""

    def __init__(self, name: str, text: str, positions: Scan, findings: Findings) -> None:
        self.name = name
        self.text = text
        self.positions = positions
        self.findings = findings
        self.nodes = 0
        self.line_starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def node(self, value: Any, loc: Loc) -> Node:
        place = self._place(self.positions.values.get(loc) or self.positions.keys.get(loc))
        self._count(place, loc)
        if isinstance(value, dict):
            entries = {
                key: Entry(self._place(self.positions.keys.get((*loc, key))), self.node(item, (*loc, key)))
                for key, item in value.items()
            }
            return Table(entries, place)
        if isinstance(value, list):
            return Items(tuple(self.node(item, (*loc, index)) for index, item in enumerate(value)), place)
        return self._leaf(value, place)

    def _leaf(self, value: Any, place: Place) -> Leaf:
        try:
            return Leaf(_checked(value), place)
        except ScalarError as error:
            self.findings.error("QC006", str(error), place, help=error.hint)
            return Leaf(None, place, bad=True)

    def _count(self, place: Place, loc: Loc) -> None:
        self.nodes += 1
        if len(loc) > MAX_DEPTH:
            self.findings.error("QC004", f"nested deeper than {MAX_DEPTH} levels", place)
            raise Stop
        if self.nodes > MAX_NODES:
            self.findings.error("QC004", f"more than {MAX_NODES} values", place)
            raise Stop

    def _place(self, span: tuple[int, int] | None) -> Place:
        if span is None:
            return Place(self.name, 1)
        line = bisect_right(self.line_starts, span[0])
        start = self.line_starts[line - 1]
        end = min(span[1], self.text.find("\n", span[0]) % (len(self.text) + 1))
        return Place(self.name, line, span[0] - start + 1, max(end - span[0], 1))


def _checked(value: Any) -> str | int | float | bool | None:
    if isinstance(value, str):
        return None if value == "null" else value
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return in_64_bits(value)
    if isinstance(value, float):
        return checked_float(value, str(value))
    raise ScalarError(f"dates and times such as `{value}` are not used here", "quote it if it is a text")
