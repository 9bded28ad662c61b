"""Checks the rules against a model: which match nothing, never win, change nothing, or disagree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from quantcfg.config.collect import Findings
from quantcfg.config.layers import RULE_TABLES
from quantcfg.config.matching import NameIndex, first_dead_segment
from quantcfg.config.nodes import place_in_key, shortened
from quantcfg.config.patterns import (
    REGEX_PREFIX,
    Alternative,
    Segment,
    alternatives,
    is_exact,
    parse_pattern,
)
from quantcfg.config.repair import repaired_segment
from quantcfg.config.rules import Classes, Decision, Rule, RuleSet, Target, resolve_stack
from quantcfg.config.suggest import counted, listing, nearest
from quantcfg.errors import Diagnostic

MAX_NAMED = 3
_Hint = tuple[str | None, tuple[str, ...]]
"""What was most likely meant, if anything is near, and what is known about where matching stops."""


def check_rules(
    ruleset: RuleSet,
    targets: Sequence[Target],
    decisions: Sequence[Decision],
    idle: Mapping[str, Classes] | None = None,
) -> list[Diagnostic]:
    """What is wrong with rules on this model, sorted by place.

    Errors: a rule, or an alternative of its pattern, matches nothing and may not; an expected count
    differs. Warnings: a rule is always beaten; a rule wins and changes nothing; two patterns of equal rank
    disagree and only their order decides; a rule matches only ``idle`` modules, which never ran: these are
    given by path with their classes.
    """
    findings = Findings(dict(ruleset.sources))
    tree, asleep = _Tree(targets), _Tree((), idle or {})
    effects = _effects(decisions)
    for rule in ruleset.rules:
        if rule.kind not in (*RULE_TABLES, "template"):
            continue
        matched = tree.matched_by(rule)
        if rule.expect is not None and len(matched) != rule.expect:
            _report_count(rule, matched, findings)
        elif not matched and (rule.optional or rule.expect == 0):
            continue
        elif not matched and (sleeping := asleep.matched_by(rule)):
            _report_idle(rule, sleeping, findings)
        elif not matched:
            _report_unmatched(rule, tree, findings)
        elif rule.kind in RULE_TABLES:
            _report_effect(rule, effects[id(rule)], findings)
            _report_alternatives(rule, matched, (tree, asleep), findings)
    _report_ties(decisions, findings)
    return [*findings.errors, *sorted(findings.warnings, key=lambda item: (item.place is None, item.place))]


class _Tree:
    """The names and classes that rules can match."""

    def __init__(self, targets: Iterable[Target], types: Mapping[str, Classes] | None = None) -> None:
        self.types: dict[str, Classes] = dict(types or {})
        for target in targets:
            self.types |= {path: classes for path, classes in target.modules() if path not in self.types}
        self.paths = [path for path in self.types if path]

    def matched_by(self, rule: Rule) -> list[str]:
        """The names of the modules and ops that a rule names itself, not those inside of them."""
        if rule.kind == "module_type":
            return [path for path, names in self.types.items() if rule.type_distance(names) is not None]
        if is_exact(rule.pattern):
            return [rule.pattern] if rule.pattern in self.types else []
        index = NameIndex([(rule.pattern, True)])
        return [path for path in self.types if index.matches(path)]

    def children(self, path: str) -> list[str]:
        """The last segments of the names right beneath ``path``."""
        prefix = f"{path}." if path else ""
        inside = (name.removeprefix(prefix) for name in self.paths if name.startswith(prefix))
        return list(dict.fromkeys(name.partition(".")[0] for name in inside))


@dataclass(slots=True)
class _Effect:
    """What one rule does on all targets."""

    won: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    changes: int = 0
    beaten_by: Counter[str] = field(default_factory=Counter)


def _effects(decisions: Iterable[Decision]) -> Mapping[int, _Effect]:
    effects: dict[int, _Effect] = defaultdict(_Effect)
    for decision in decisions:
        contributors = decision.contributors
        stack = (decision.winner, *decision.losers) if decision.winner else ()
        for position, rule in enumerate(contributors):
            effects[id(rule)].won.append(decision.target)
            without = resolve_stack((*stack[:position], *stack[position + 1 :]))
            effects[id(rule)].changes += without != decision.spec or len(stack) == 1
        for rule in stack[len(contributors) :]:
            effects[id(rule)].lost.append(decision.target)
            effects[id(rule)].beaten_by[str(contributors[-1])] += 1
    return effects


def _report_count(rule: Rule, matched: Sequence[str], findings: Findings) -> None:
    count = counted(len(matched), "name")
    findings.error(
        "QC202",
        f"the rule `{shortened(rule.pattern)}` matches {count}, expected {rule.expect}",
        rule.place,
        label=f"expect: {rule.expect}, found {len(matched)}",
        notes=(f"it matches {listing(matched)}",) if matched else (),
        help=f"correct the pattern, or write `expect: {len(matched)}`",
    )


def _report_unmatched(rule: Rule, tree: _Tree, findings: Findings) -> None:
    what = "class" if rule.kind == "module_type" else "name"
    hint, notes = _type_hint(rule, tree) if rule.kind == "module_type" else _pattern_hint(rule.pattern, tree)
    advice = f"write `{hint}`" if hint else _advice(rule, tree)
    findings.error(
        "QC201",
        f"the rule `{shortened(rule.pattern)}` matches nothing",
        rule.place,
        label=f"did you mean `{hint}`?" if hint else f"no {what} of this model",
        notes=notes,
        help=advice,
    )


def _report_alternatives(
    rule: Rule, matched: Sequence[str], trees: tuple[_Tree, _Tree], findings: Findings
) -> None:
    """Report the names of a ``{a,b}`` that match nothing while others do: they were meant to match, too."""
    if rule.optional or rule.kind != "module_name" or rule.exact:
        return
    tree, asleep = trees
    for item in alternatives(rule.pattern):
        index: NameIndex[bool] = NameIndex([])
        index.add_segments(item.segments, True)
        if any(map(index.matches, matched)) or any(map(index.matches, asleep.matched_by(rule))):
            continue
        hint, notes = _name_hint(item.segments, tree)
        near = _between(hint, item) if hint else None
        if near in item.group:
            hint, near, notes = None, None, notes[:1]
        findings.error(
            "QC204",
            f"`{shortened(item.text)}` of the rule `{shortened(rule.pattern)}` matches nothing",
            rule.place and place_in_key(rule.pattern, rule.place, item.offset, len(item.text)),
            label=f"did you mean `{near or hint}`?" if hint else "no name of this model",
            notes=notes,
            help=f"write `{near}`" if near else "remove it, or write `{use: ..., optional: true}`",
        )


def _between(name: str, item: Alternative) -> str | None:
    """What stands in ``name`` where the alternative stands in its pattern, if all around it is the same."""
    is_same = name.startswith(item.head) and name.endswith(item.tail)
    return name[len(item.head) : len(name) - len(item.tail)] or None if is_same else None


def _advice(rule: Rule, tree: _Tree) -> str:
    if rule.kind == "template":
        return "make the table anew, from this model"
    if rule.kind == "module_type" and (derived := tree.matched_by(replace(rule, subclasses=True))):
        count = counted(len(derived), "module derives", "modules derive")
        return f"{count} from it: write `{{use: ..., subclasses: true}}`"
    return "remove the rule, or write `{use: ..., optional: true}`"


def _report_idle(rule: Rule, names: Sequence[str], findings: Findings) -> None:
    findings.warning(
        "QC215",
        f"the rule `{shortened(rule.pattern)}` matches only what the example never runs",
        rule.place,
        label=f"matches {listing([f'`{name}`' for name in names], MAX_NAMED)}, inside of which no op ran",
        help="give the model an example that runs it, or remove the rule",
    )


def _type_hint(rule: Rule, tree: _Tree) -> _Hint:
    own = [classes[0] for classes in tree.types.values()]
    names = list(dict.fromkeys(name for spellings in own for name in spellings))
    short = list(dict.fromkeys(spellings[-1] for spellings in own if spellings))
    if "." not in rule.pattern:
        names = short + names
    return nearest(rule.pattern, names), (f"classes of this model: {listing(short, 16)}",)


def _pattern_hint(pattern: str, tree: _Tree) -> _Hint:
    if pattern.startswith(REGEX_PREFIX):
        return None, ("a regular expression must match a whole name",)
    return _name_hint(parse_pattern(pattern), tree)


def _name_hint(parsed: Sequence[Segment], tree: _Tree) -> _Hint:
    segments = [segment.text for segment in parsed]
    if any(segment.is_any_depth for segment in parsed):
        return _repaired_anywhere(segments, tree), ()
    index, reached = first_dead_segment(parsed, tree.paths)
    children = list(dict.fromkeys(child for path in reached for child in tree.children(path)))
    where = f"`{reached[0]}`" if reached[0] else "the model"
    note = f"matching stops at segment {index + 1}: {where} has "
    note += f"children {listing(children, 12)}" if children else "no children"
    near = repaired_segment(segments[index], children)
    if near is None:
        return None, (note,)
    repaired = ".".join([*segments[:index], near, *segments[index + 1 :]])
    count = len(tree.matched_by(Rule("module_name", repaired, None)))
    return (repaired, (note, f"`{repaired}` matches {count}")) if count else (None, (note,))


def nearest_name(name: str, targets: Sequence[Target]) -> _Hint:
    """The name of a module or op that ``name`` was meant to be, if one is near, and where it goes astray."""
    if not is_exact(name) or not all(name.split(".")):
        return None, ()
    return _name_hint(parse_pattern(name), _Tree(targets))


def _repaired_anywhere(segments: Sequence[str], tree: _Tree) -> str | None:
    """The change of one segment that makes a pattern with ``**`` match; such a one stops nowhere."""
    known = sorted({name for path in tree.paths for name in path.split(".")})
    for position, text in enumerate(segments):
        near = repaired_segment(text, known) if text != "**" and text not in known else None
        repaired = ".".join([*segments[:position], near or text, *segments[position + 1 :]])
        if near and tree.matched_by(Rule("module_name", repaired, None)):
            return repaired
    return None


def _report_effect(rule: Rule, effect: _Effect, findings: Findings) -> None:
    if not effect.won:
        winners = [name for name, _ in effect.beaten_by.most_common(MAX_NAMED)]
        label = f"beaten on {_named(effect.lost)} by {'; '.join(winners)}" if winners else "wins nothing"
        advice = "remove it, or move it after the rules that beat it"
        findings.warning(
            "QC211", f"the rule `{shortened(rule.pattern)}` never wins", rule.place, label=label, help=advice
        )
    elif effect.changes == 0:
        summary = f"the rule `{shortened(rule.pattern)}` changes nothing"
        label = f"wins {_named(effect.won)}, the same without it"
        findings.warning("QC212", summary, rule.place, label=label, help="remove it")


def _named(ops: Sequence[str]) -> str:
    return listing([f"`{op}`" for op in ops], MAX_NAMED)


def _report_ties(decisions: Iterable[Decision], findings: Findings) -> None:
    """Two patterns that match the same module and disagree: allowed, as the later wins, and worth knowing."""
    for decision in decisions:
        winner = decision.winner
        if winner is None or winner.kind != "module_name" or winner.exact or winner.inherit is not None:
            continue
        for loser in decision.losers:
            if loser.kind != "module_name" or loser.exact or loser.inherit is not None:
                break
            if loser.spec != winner.spec and loser.place and _same_module(winner, loser, decision.target):
                both = f"`{shortened(winner.pattern)}` and `{shortened(loser.pattern)}`"
                findings.warning(
                    "QC210",
                    f"{both} disagree on `{decision.target}`",
                    winner.place,
                    label="wins because it is later in the file",
                    related=((loser.place, "the other one"),),
                    help="make the patterns disjoint, or name the modules exactly",
                )
                break


def _same_module(winner: Rule, loser: Rule, target: str) -> bool:
    """Whether both match at the same depth, so that only their order decides."""
    return _depth(winner, target) == _depth(loser, target)


def _depth(rule: Rule, target: str) -> int:
    index = NameIndex([(rule.pattern, True)])
    parts = target.split(".")
    return max((n for n in range(len(parts) + 1) if index.matches(".".join(parts[:n]))), default=-1)
