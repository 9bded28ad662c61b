"""Breaks every shipped config in every way of one edit and scores what the loader says about it.

Run it with ``python tests/config/mutation.py``; it prints one line per kind of mutation and the share that is
reported, on the right line, with the right suggestion, and as exactly one error.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantcfg.config.collect import Findings
from quantcfg.config.findings import check_rules
from quantcfg.config.layers import is_free
from quantcfg.config.load import load_config
from quantcfg.config.nodes import Items, Leaf, Node, Table
from quantcfg.config.parameters import PARAMETERS
from quantcfg.config.presets import PRESETS
from quantcfg.config.rules import Target
from quantcfg.config.source import parse
from quantcfg.errors import ConfigError, Diagnostic, Place

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = {"version", "name", "lr", "use", "max_lr", "milestones", "step_size", "calib", "qat"}
TEXTS = {"preset", "global", "use", "bn", "name", "format", "dtype", "qscheme", "nonfinite", "templates"}
TEXTS |= {"activation_observer", "weight_observer", "activation_fake_quant", "weight_fake_quant"}
DTYPES = {f"{sign}{bits}" for sign in ("qint", "quint") for bits in range(2, 17)}
KNOWN_VALUES = {*DTYPES, *PRESETS, *PARAMETERS, "inherit", "Adam", "AdamW", "SGD"}
MODEL_CONFIG = """\
version: 1
qconfig:
  global: w8a8
  module_type:
    torch.nn.Linear: w8a16
    Attention: w8a8_lsq
  module_name:
    backbone.layer{1,2}.*.conv2: w4a8
    backbone.layer1.block: w8a16
    encoder.**.attention: w4a4
    classifier.output: w8a32
"""
MODEL = (
    ("backbone.layer1.block.conv2", "torch.nn.Conv2d"),
    ("backbone.layer2.block.conv2", "torch.nn.Conv2d"),
    ("encoder.stack.first.attention", "Attention"),
    ("encoder.stack.first.project", "torch.nn.Linear"),
    ("classifier.output", "torch.nn.Linear"),
)


@dataclass(frozen=True)
class Mutant:
    """A broken text: what was done, on which line the fault is, and what should be suggested."""

    kind: str
    name: str
    text: str
    line: int
    suggestion: str = ""
    on_model: bool = False


@dataclass
class Score:
    """Counts of one kind of mutation."""

    total: int = 0
    reported: int = 0
    line: int = 0
    suggested: int = 0
    suggestible: int = 0
    single: int = 0


def typos(word: str) -> Iterator[str]:
    """Every omission, doubling and swap of neighbours, and a replacement of each character."""
    for i in range(len(word)):
        yield word[:i] + word[i + 1 :]
        yield word[:i] + word[i] + word[i:]
        yield word[:i] + ("x" if word[i] != "x" else "y") + word[i + 1 :]
        if i + 1 < len(word) and word[i] != word[i + 1]:
            yield word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def replaced(text: str, place: Place, new: str) -> str:
    """The text with a span replaced."""
    lines = text.split("\n")
    line = lines[place.line - 1]
    start = place.column - 1
    lines[place.line - 1] = line[:start] + new + line[start + place.length :]
    return "\n".join(lines)


def entries(node: Node, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Place, Node]]:
    """Every key of a tree with its path, place and value."""
    if isinstance(node, Table):
        for key, entry in node.entries.items():
            yield (*path, key), entry.key_place, entry.node
            yield from entries(entry.node, (*path, key))
    elif isinstance(node, Items):
        for item in node.items:
            yield from entries(item, path)


def mutants(name: str, text: str) -> Iterator[Mutant]:
    """Every mutant of a config."""
    tree = parse(name, text.encode(), Findings())
    found = list(entries(tree))
    names = {path[-1] for path, _, _ in found if path[:-1] == ("qconfigs",)}
    for path, place, node in found:
        key = path[-1]
        if not is_free(path[:-1]):
            yield from _key_mutants(name, text, key, place)
        if isinstance(node, Leaf):
            yield from _value_mutants(name, text, path, node, names)
        if name.endswith(".yaml"):
            yield from _structure_mutants(name, text, path, place, node)


def _key_mutants(name: str, text: str, key: str, place: Place) -> Iterator[Mutant]:
    if place.length != len(key):
        return
    for wrong in dict.fromkeys(typos(key)):
        if wrong and re.fullmatch(r"[A-Za-z_]\w*", wrong):
            yield Mutant("key typo", name, replaced(text, place, wrong), place.line, key)


def _value_mutants(
    name: str, text: str, path: tuple[str, ...], node: Leaf, names: set[str]
) -> Iterator[Mutant]:
    value, place = node.value, node.place
    is_qconfig = is_free(path[:-1]) and path[0] != "guards"
    if isinstance(value, str) and (path[-1] in TEXTS or is_qconfig):
        quotes = '"' if place.length == len(value) + 2 else ""
        for wrong in dict.fromkeys(typos(value)):
            if wrong not in KNOWN_VALUES and wrong not in names and re.fullmatch(r"[A-Za-z_]\w*", wrong):
                yield Mutant(
                    "value typo", name, replaced(text, place, f"{quotes}{wrong}{quotes}"), place.line, value
                )
    if isinstance(value, bool):
        yield Mutant("truth as text", name, replaced(text, place, '"true"'), place.line)
        yield Mutant("truth as number", name, replaced(text, place, "1"), place.line)
    elif isinstance(value, int | float):
        yield Mutant("number as text", name, replaced(text, place, f'"{value}"'), place.line)
        yield Mutant("number as truth", name, replaced(text, place, "true"), place.line)
        yield Mutant("value as list", name, replaced(text, place, "[1]"), place.line)
    elif isinstance(value, str):
        yield Mutant("text as number", name, replaced(text, place, "7"), place.line)
        yield Mutant("value as list", name, replaced(text, place, "[a]"), place.line)


def _structure_mutants(
    name: str, text: str, path: tuple[str, ...], place: Place, node: Node
) -> Iterator[Mutant]:
    lines = text.split("\n")
    line = lines[place.line - 1]
    one_line = line.strip().startswith(line[place.column - 1 :].strip()) and place.line == _last_line(node)
    if not one_line:
        return
    doubled = [*lines[: place.line], line, *lines[place.line :]]
    yield Mutant("key twice", name, "\n".join(doubled), place.line + 1)
    if path[-1] in REQUIRED and len(path) > 1 and not is_free(path[:-1]):
        without = [*lines[: place.line - 1], *lines[place.line :]]
        yield Mutant("required key gone", name, "\n".join(without), 0)
    if len(path) == 2 and not is_free(path[:-1]):
        moved = [*lines[: place.line - 1], *lines[place.line :], line.strip()]
        text_moved = "\n".join(moved).rstrip("\n")
        yield Mutant("wrong nesting", name, text_moved, len(text_moved.split("\n")))


def _last_line(node: Node) -> int:
    if isinstance(node, Leaf):
        return node.place.line
    values = node.items if isinstance(node, Items) else [entry.node for entry in node.entries.values()]
    return max([node.place.line, *map(_last_line, values)])


def pattern_mutants() -> Iterator[Mutant]:
    """Typos in the literal parts of names and classes of rules, to be found with the model attached."""
    tree = parse("model.yaml", MODEL_CONFIG.encode(), Findings())
    for path, place, _ in entries(tree):
        if path[:-1] not in (("qconfig", "module_name"), ("qconfig", "module_type")):
            continue
        for word in re.finditer(r"[A-Za-z]\w*", path[-1]):
            if path[-1][: word.start()].count("{") > path[-1][: word.start()].count("}"):
                continue
            for wrong in dict.fromkeys(typos(word[0])):
                if re.fullmatch(r"[A-Za-z]\w*", wrong):
                    pattern = path[-1][: word.start()] + wrong + path[-1][word.end() :]
                    text = replaced(MODEL_CONFIG, place, pattern)
                    yield Mutant("pattern typo", "model.yaml", text, place.line, path[-1], on_model=True)


def targets() -> list[Target]:
    """The small model that the rules of `MODEL_CONFIG` speak of."""
    made = []
    for name, kind in MODEL:
        parts = name.split(".")
        chain = [("", ("Net",)), *((".".join(parts[:n]), ("Block",)) for n in range(1, len(parts)))]
        made.append(Target(name, (*chain, (name, (kind, kind.rpartition(".")[2])))))
    return made


def findings(mutant: Mutant, folder: Path) -> list[Diagnostic]:
    """What the loader, and on a model the check of the rules, says about a mutant."""
    path = folder / mutant.name
    path.write_text(mutant.text)
    try:
        config = load_config(path)
    except ConfigError as error:
        return list(error.diagnostics)
    if not mutant.on_model:
        return []
    rules = config.rules("calib")
    on_model = check_rules(rules, targets(), rules.resolve(targets()))
    return [item for item in on_model if item.severity == "error"]


def score(mutant: Mutant, found: list[Diagnostic], into: Score) -> None:
    """Count one mutant."""
    into.total += 1
    into.reported += bool(found)
    into.single += len(found) == 1
    first = found[0] if found else None
    into.line += bool(first and first.place and mutant.line in (0, first.place.line))
    if mutant.suggestion:
        into.suggestible += 1
        into.suggested += any(f"`{mutant.suggestion}`" in item.help for item in found)


def run(*, show: bool = False) -> dict[str, Score]:
    """Score every mutant of every shipped config; the result has a line per kind and one for all."""
    scores: dict[str, Score] = {}
    with tempfile.TemporaryDirectory() as folder:
        for mutant in all_mutants():
            found = findings(mutant, Path(folder))
            for kind in (mutant.kind, "all"):
                score(mutant, found, scores.setdefault(kind, Score()))
            if show and len(found) != 1:
                print(mutant.kind, mutant.name, mutant.line, mutant.suggestion, [str(item) for item in found])
    return {kind: scores[kind] for kind in sorted(scores, key=lambda kind: kind == "all")}


def all_mutants() -> Iterator[Mutant]:
    """Every mutant of every shipped config and of the one with a model."""
    for path in sorted((ROOT / "configs").iterdir()):
        yield from mutants(path.name, path.read_text())
    yield from pattern_mutants()


def main() -> None:
    """Print the table."""
    print(f"{'mutation':20} {'count':>6} {'reported':>9} {'line':>7} {'suggested':>10} {'one error':>10}")
    for kind, s in run(show="--show" in sys.argv).items():
        suggested = f"{s.suggested / s.suggestible:10.1%}" if s.suggestible else " " * 10
        shares = f"{s.reported / s.total:9.1%} {s.line / s.total:7.1%} {suggested} {s.single / s.total:10.1%}"
        print(f"{kind:20} {s.total:6} {shares}")


if __name__ == "__main__":
    main()
