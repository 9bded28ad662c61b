"""Breaks every shipped config in every way of one edit and scores what the loader says about it.

``python -m tests.config.mutation`` prints one line per kind of edit and the share that is reported, on the
right line, with the right suggestion, and as exactly one error.

An edit need not break anything. A deletion counts when the key is required or something refers to it, and a
reorder when it changes what some op of a model gets; the tool then has to warn about the two rules, in either
order. The others are counted as harmless, after a look at what they mean: a deletion must leave the rest of
the config as it was, and nothing may be reported.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantcfg.config.collect import Findings
from quantcfg.config.findings import check_rules
from quantcfg.config.layers import is_free
from quantcfg.config.load import Config, load_config
from quantcfg.config.nodes import Items, Leaf, Node, Table
from quantcfg.config.parameters import PARAMETERS
from quantcfg.config.presets import PRESETS
from quantcfg.config.source import Stop, parse
from quantcfg.errors import ConfigError, Diagnostic, Place
from tests.config.small_model import MODEL_CONFIG, OVERLAPS, targets
from tests.config.structure_edits import (
    Block,
    Edited,
    at_the_end,
    blocks,
    inline_deletions,
    neighbours,
    shifted,
    swapped,
    without,
)

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = {"version", "name", "lr", "use", "max_lr", "milestones", "step_size"}
TEXTS = {"preset", "global", "use", "bn", "name", "format", "dtype", "qscheme", "nonfinite", "templates"}
TEXTS |= {"activation_observer", "weight_observer", "activation_fake_quant", "weight_fake_quant"}
DTYPES = {f"{sign}{bits}" for sign in ("qint", "quint") for bits in range(2, 17)}
KNOWN_VALUES = {*DTYPES, *PRESETS, *PARAMETERS, "inherit", "Adam", "AdamW", "SGD"}


@dataclass(frozen=True)
class Mutant:
    """A broken text: what was done, on which line the fault is, and what should be suggested.

    ``lines`` are the right ones where there are several; ``line`` 0 takes any.
    """

    kind: str
    name: str
    text: str
    line: int
    suggestion: str = ""
    on_model: bool = False
    lines: tuple[int, ...] = ()


@dataclass
class Score:
    """Counts of one kind of mutation. ``harmless`` ones are no part of the total."""

    total: int = 0
    harmless: int = 0
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
    if name.endswith(".yaml"):
        own_lines = list(blocks(tree, text))
        yield from _doubled(name, text, own_lines)
        yield from _nested(name, text, own_lines)
    for path, place, node in found:
        key = path[-1]
        if not is_free(path[:-1]):
            yield from _key_mutants(name, text, key, place)
        if isinstance(node, Leaf):
            yield from _value_mutants(name, text, path, node, names)


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


def _doubled(name: str, text: str, found: list[Block]) -> Iterator[Mutant]:
    for block in found:
        if block.end == block.first + 1:
            lines = text.split("\n")
            doubled = [*lines[: block.end], lines[block.first], *lines[block.end :]]
            yield Mutant("key twice", name, "\n".join(doubled), block.end + 1)


def _nested(name: str, text: str, found: list[Block]) -> Iterator[Mutant]:
    """A block at the end of the file, two columns to the left, two to the right."""
    for block in found:
        *section, key = block.path
        if (
            is_free(tuple(section)) or key == "qconfig"
        ):  # a name is a name anywhere; `qconfig` has three places
            continue
        if len(section) == 1:
            for edited in (at_the_end(text, block), shifted(text, block, -1)):
                yield _misplaced(name, edited, section[0])
        elif not section and block.first and not isinstance(block.node, Leaf):
            yield _misplaced(name, shifted(text, block, 1))


def _misplaced(name: str, edited: Edited, section: str = "") -> Mutant:
    """Where the text is no YAML any more, the fault lies between two lines, and no section can be named."""
    try:
        parse(name, edited.text.encode(), Findings())
    except Stop:
        lines = edited.text.split("\n")
        used = [n for n in range(edited.line, len(lines)) if lines[n].strip() and lines[n].strip()[0] != "#"]
        return Mutant("wrong nesting", name, edited.text, edited.line, lines=(edited.line, used[0] + 1))
    return Mutant("wrong nesting", name, edited.text, edited.line, section)


def deletions(name: str, text: str) -> Iterator[tuple[Mutant, tuple[str, ...]]]:
    """Every key gone, with its path."""
    tree = parse(name, text.encode(), Findings())
    for edited in (*(without(text, block) for block in blocks(tree, text)), *inline_deletions(tree, text)):
        yield Mutant("key gone", name, edited.text, 0), edited.path


def reorders(name: str, text: str) -> Iterator[Mutant]:
    """Every two neighbours swapped."""
    found = list(blocks(parse(name, text.encode(), Findings()), text))
    for a, b in neighbours(found):
        edited = swapped(text, a, b)
        lines = (edited.line, edited.line + b.end - b.first + b.first - a.end)
        yield Mutant("reorder", name, edited.text, edited.line, on_model=True, lines=lines)


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


def load(mutant: Mutant, folder: Path) -> Config | list[Diagnostic]:
    """The config, or what is wrong with it."""
    path = folder / mutant.name
    path.write_text(mutant.text)
    try:
        return load_config(path)
    except ConfigError as error:
        return list(error.diagnostics)


def findings(mutant: Mutant, folder: Path) -> list[Diagnostic]:
    """What the loader, and on a model the check of the rules, says about a mutant."""
    loaded = load(mutant, folder)
    if isinstance(loaded, list):
        return loaded
    return [item for item in checked(loaded) if item.severity == "error"] if mutant.on_model else []


def checked(config: Config) -> list[Diagnostic]:
    """What is said about the rules of a config on the small model."""
    rules = config.rules("calib")
    return check_rules(rules, targets(), rules.resolve(targets()))


def meaning(config: Config) -> list[Any]:
    """What each op of the small model gets."""
    return [
        [decision.spec for decision in config.rules(stage).resolve(targets())] for stage in ("calib", "qat")
    ]


def score(mutant: Mutant, found: list[Diagnostic], into: Score) -> None:
    """Count one mutant."""
    into.total += 1
    into.reported += bool(found)
    into.single += len(found) == 1
    first = found[0] if found else None
    right = mutant.lines or (mutant.line,)
    into.line += bool(first and first.place and (0 in right or first.place.line in right))
    if mutant.suggestion:
        into.suggestible += 1
        into.suggested += any(f"`{mutant.suggestion}`" in item.help for item in found)


def run(*, show: bool = False) -> dict[str, Score]:
    """Score every mutant of every shipped config; the result has a line per kind and one for all."""
    scores: dict[str, Score] = {}
    with tempfile.TemporaryDirectory() as folder:
        for mutant, found in judged(Path(folder)):
            for kind in (mutant.kind, "all"):
                into = scores.setdefault(kind, Score())
                if found is None:
                    into.harmless += 1
                else:
                    score(mutant, found, into)
            if show and found is not None and len(found) != 1:
                print(mutant.kind, mutant.name, mutant.line, mutant.suggestion, [str(item) for item in found])
    return {kind: scores[kind] for kind in sorted(scores, key=lambda kind: kind == "all")}


def judged(folder: Path) -> Iterator[tuple[Mutant, list[Diagnostic] | None]]:
    """Every mutant with what is said about it; None where it breaks nothing."""
    for path in sorted((ROOT / "configs").iterdir()):
        text = path.read_text()
        for mutant in mutants(path.name, text):
            yield mutant, findings(mutant, folder)
        if path.suffix == ".yaml":
            yield from judged_deletions(path.name, text, folder)
            yield from judged_reorders(path.name, text, folder)
    yield from ((mutant, findings(mutant, folder)) for mutant in pattern_mutants())
    yield from judged_reorders("overlaps.yaml", OVERLAPS, folder)


def judged_deletions(name: str, text: str, folder: Path) -> Iterator[tuple[Mutant, list[Diagnostic] | None]]:
    """Deletions; harmless when the rest of the config is loaded as it was."""
    original = load(Mutant("", name, text, 0), folder)
    assert isinstance(original, Config)
    for mutant, path in deletions(name, text):
        loaded = load(mutant, folder)
        if isinstance(loaded, Config):
            is_rest = loaded.flattened() == rest_of(original.flattened(), path)
            yield mutant, None if is_rest and path[-1] not in REQUIRED else []
        else:
            yield mutant, loaded


def rest_of(values: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The values without the one at a path."""
    key, *inside = path
    changed = {key: rest_of(values[key], tuple(inside))} if inside else {}
    return {name: changed.get(name, value) for name, value in values.items() if name != key or inside}


def judged_reorders(name: str, text: str, folder: Path) -> Iterator[tuple[Mutant, list[Diagnostic] | None]]:
    """Reorders; harmless when every op of the model gets what it got."""
    original = load(Mutant("", name, text, 0), folder)
    assert isinstance(original, Config)
    for mutant in reorders(name, text):
        loaded = load(mutant, folder)
        if isinstance(loaded, list):
            yield mutant, loaded
        elif meaning(loaded) == meaning(original):
            yield mutant, None
        else:
            yield (
                mutant,
                [item for item in checked(loaded) if item.code == "QC210" and at(item, mutant.lines)],
            )


def at(item: Diagnostic, lines: tuple[int, ...]) -> bool:
    """Whether a finding is about these lines."""
    return {place.line for place in (item.place, *(place for place, _ in item.related)) if place} <= set(
        lines
    )


def all_mutants() -> Iterator[Mutant]:
    """Every mutant that an oracle is not needed for, of every shipped config and of the one with a model."""
    for path in sorted((ROOT / "configs").iterdir()):
        yield from mutants(path.name, path.read_text())
    yield from pattern_mutants()


def main() -> None:
    """Print the table."""
    titles = ("count", "reported", "line", "suggested", "one error", "harmless")
    print("{:16} {:>6} {:>9} {:>7} {:>10} {:>10} {:>9}".format("mutation", *titles))
    for kind, s in run(show="--show" in sys.argv).items():
        suggested = f"{s.suggested / s.suggestible:10.1%}" if s.suggestible else " " * 10
        shares = f"{s.reported / s.total:9.1%} {s.line / s.total:7.1%} {suggested} {s.single / s.total:10.1%}"
        print(f"{kind:16} {s.total:6} {shares} {s.harmless or '':>9}")


if __name__ == "__main__":
    main()
