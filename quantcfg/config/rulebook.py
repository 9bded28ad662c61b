"""The rules of a stage, from the tree of the config."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from quantcfg.config.collect import Findings
from quantcfg.config.forms import RULE_KEYS
from quantcfg.config.layers import RULE_TABLES, merge
from quantcfg.config.nodes import Entry, Items, Leaf, Node, Table, as_table, place_in_key, shortened
from quantcfg.config.patterns import REGEX_PREFIX, PatternError, is_exact, parse_pattern, parse_regex
from quantcfg.config.qconfigs import Broken, QConfigReader
from quantcfg.config.rules import Rule, in_order
from quantcfg.config.sensitivity import sensitive_rules
from quantcfg.errors import Place

_TYPE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
MAX_TYPE_NAME = 200
MAX_REGEXES = 1000


def stage_rules(tree: Table, stage: str) -> Table:
    """The shared rules with those of the stage merged over them."""
    own = as_table(tree.get(stage)).get("qconfig")
    return merge(as_table(tree.get("qconfig")), as_table(own), ("qconfig",))


def stage_templates(tree: Table, stage: str) -> tuple[str, ...]:
    """The templates of a stage that look at the graph, in the order of the file."""
    node = stage_rules(tree, stage).get("templates")
    items = node.items if isinstance(node, Items) else ()
    return tuple(str(item.value) for item in items if isinstance(item, Leaf))


def build_rules(tree: Table, reader: QConfigReader, findings: Findings) -> tuple[Rule, ...]:
    """Every rule of the reader's stage in the order of the file; broken ones are left out and reported."""
    rules: list[Rule] = []
    regexes = 0
    for kind, pattern, entry in _rule_entries(stage_rules(tree, reader.stage)):
        if findings.full:
            break
        if pattern.startswith(REGEX_PREFIX) and (regexes := regexes + 1) > MAX_REGEXES:
            summary = f"more than {MAX_REGEXES} rules with a regular expression"
            findings.error("QC004", summary, entry.key_place, help="patterns without `re:` are not limited")
            break
        check_pattern(kind, pattern, entry.key_place, findings)
        try:
            rules.append(_rule(kind, pattern, entry, reader, findings, order=len(rules)))
        except Broken:
            continue
    rules += sensitive_rules(stage_rules(tree, reader.stage).get("templates"), reader)
    return in_order(rules)


def _rule_entries(table: Table) -> Iterator[tuple[str, str, Entry]]:
    for key, entry in table.entries.items():
        if key == "global":
            yield "global", "", entry
        elif key in RULE_TABLES:
            for pattern, rule in as_table(entry.node).entries.items():
                yield key, pattern, rule


def _rule(
    kind: str, pattern: str, entry: Entry, reader: QConfigReader, findings: Findings, *, order: int
) -> Rule:
    options = _options(entry.node)
    if options.subclasses and kind != "module_type":
        findings.error(
            "QC107",
            "`subclasses` is for rules of `module_type`",
            options.subclasses,
            label="names have no subclasses",
            help="remove it",
        )
    draft = reader.read(options.use)
    if draft and draft.inherits and kind == "global":
        findings.error(
            "QC126", "`global` has nothing to inherit from", entry.node.place, help="start from a preset"
        )
        raise Broken
    return Rule(
        kind=kind,
        pattern=pattern,
        spec=draft.spec if draft and not draft.inherits else None,
        place=entry.key_place,
        optional=options.optional,
        expect=options.expect,
        order=order,
        inherit=draft.inherited if draft else None,
        subclasses=options.subclasses is not None,
    )


@dataclass(frozen=True, slots=True)
class _Options:
    """What a rule says beside its qconfig. ``subclasses`` is where it is asked for; None where it is not."""

    use: Node
    optional: bool = False
    expect: int | None = None
    subclasses: Place | None = None


def _options(node: Node) -> _Options:
    if not isinstance(node, Table) or RULE_KEYS.isdisjoint(node.entries):
        return _Options(node)
    use, expect = node.get("use"), node.get("expect")
    if use is None:
        raise Broken
    return _Options(
        use,
        optional=_switched_on(node, "optional") is not None,
        expect=expect.value if isinstance(expect, Leaf) and isinstance(expect.value, int) else None,
        subclasses=_switched_on(node, "subclasses"),
    )


def _switched_on(node: Table, key: str) -> Place | None:
    entry = node.entries.get(key)
    on = entry is not None and isinstance(entry.node, Leaf) and entry.node.value is True
    return entry.key_place if entry is not None and on else None


def check_pattern(kind: str, pattern: str, place: Place, findings: Findings) -> None:
    """Report a type or pattern that cannot be read; each is looked at once, though two stages share it."""
    if (kind, pattern) in findings.checked:
        return
    findings.checked.add((kind, pattern))
    if kind == "module_type" and (not _TYPE_NAME.fullmatch(pattern) or len(pattern) > MAX_TYPE_NAME):
        findings.error(
            "QC131",
            f"`{shortened(pattern)}` is not the name of a class",
            place,
            help="write a dotted name such as `torch.nn.Linear`; patterns of names go under `module_name`",
        )
    elif kind == "module_name" and (not is_exact(pattern) or _is_odd_name(pattern)):
        try:
            parse_regex(pattern) if pattern.startswith(REGEX_PREFIX) else parse_pattern(pattern)
        except PatternError as error:
            summary = f"`{shortened(pattern)}` is not a pattern: {error}"
            where = place_in_key(pattern, place, error.offset, len(pattern) - error.offset)
            findings.error("QC130", summary, where, help=error.hint)


def _is_odd_name(pattern: str) -> bool:
    return not pattern or ".." in pattern or pattern.startswith(".") or pattern.endswith(".")
