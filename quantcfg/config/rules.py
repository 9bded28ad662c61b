"""Which rule wins for each op: tiers, then the nearest module, then the later rule."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from quantcfg.config.collect import source_line
from quantcfg.config.kinds import accepted, owners
from quantcfg.config.matching import NameIndex
from quantcfg.config.overlay import kind, overlay
from quantcfg.config.patterns import is_exact
from quantcfg.config.spec import SLOTS, Field, Fields, QConfigSpec, make_spec, slot_kwargs
from quantcfg.errors import ConfigError, Diagnostic, Place

TIERS = {"global": 0, "module_type": 1, "template": 2, "module_name": 3, "attribute": 5}
EXACT_NAME_TIER = 4


Spellings = tuple[str, ...]
"""Every name that a class goes by."""
Classes = tuple[Spellings, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the rules: what it matches and the qconfig that it gives.

    ``spec`` None leaves in float. ``inherit`` holds the changed fields of a rule that starts from what would
    have won without it, and then ``spec`` is not looked at. ``order`` is the position in the file, after
    `extends`; ``expect`` pins how many names the rule matches. ``subclasses`` lets a type match the classes
    derived from it. A ``template`` rule is a row of a sensitivity table; its pattern is the name of an op.
    """

    kind: str
    pattern: str
    spec: QConfigSpec | None
    place: Place | None = None
    optional: bool = False
    expect: int | None = None
    order: int = 0
    inherit: tuple[tuple[str, Field], ...] | None = None
    subclasses: bool = False

    @property
    def exact(self) -> bool:
        """Whether the pattern is one whole name."""
        named = self.kind == "module_name" and is_exact(self.pattern)
        return named or self.kind in ("attribute", "template")

    def type_distance(self, classes: Classes) -> int | None:
        """How far above a class is the one that this rule names: 0 for the class itself, None for no match.

        Args:
            classes: the spellings of the class and of those that it derives from, nearest first.
        """
        for distance, names in enumerate(classes if self.subclasses else classes[:1]):
            if self.pattern in names:
                return distance
        return None

    @property
    def tier(self) -> int:
        """Rank of the kind of rule; the higher wins whatever else holds."""
        return EXACT_NAME_TIER if self.kind == "module_name" and self.exact else TIERS[self.kind]

    def __str__(self) -> str:
        where = f" ({self.place})" if self.place else ""
        return f"{self.kind} {self.pattern}{where}" if self.pattern else f"{self.kind}{where}"


@dataclass(frozen=True, slots=True)
class Target:
    """An op and the modules around it, the root first and the op itself last.

    ``chain`` pairs each path with every accepted spelling of the class there; a functional op has none.
    ``bases`` goes along with it: the spellings of each class that the class there derives from. What runs in
    a later call, or is held by another path there, stands there under that name, too: it is ``of_one_call``.
    """

    name: str
    chain: tuple[tuple[str, Spellings], ...]
    bases: tuple[Classes, ...] = ()
    of_one_call: frozenset[str] = frozenset()

    def modules(self) -> Iterator[tuple[str, Classes]]:
        """Each path with the spellings of its class and of the classes above it."""
        bases = self.bases or ((),) * len(self.chain)
        for (path, names), above in zip(self.chain, bases, strict=True):
            yield path, (names, *above)

    def depths(self) -> Iterator[int]:
        """How deep each name of the chain is: even for what a name of every call stands for."""
        depth = -2
        for path, _ in self.chain:
            depth += (1 if path in self.of_one_call else 2) - depth % 2
            yield depth


Rank = tuple[int, int, int, int]
Ranked = tuple[Rank, Rule]
"""A matching rule with its (tier, depth of the matched module, nearness of the class, order)."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What one op gets and why. No winner means that no rule speaks of it: it stays in float.

    ``ranked`` has every rule that speaks of the op, the winner first; ``depth`` is that of the name that
    the op has in every call. ``left_by`` names what leaves it in float, where that is no rule.
    """

    target: str
    spec: QConfigSpec | None
    ranked: tuple[Ranked, ...] = ()
    depth: int = 0
    left_by: str = ""

    @property
    def winner(self) -> Rule | None:
        """The rule that decides."""
        return self.ranked[0][1] if self.ranked else None

    @property
    def losers(self) -> tuple[Rule, ...]:
        """The rules that the winner beats, best first."""
        return tuple(rule for _, rule in self.ranked[1:])

    @property
    def contributors(self) -> tuple[Rule, ...]:
        """The winner and, while they inherit, the rules beneath it."""
        stack = tuple(rule for _, rule in self.ranked)
        for position, rule in enumerate(stack):
            if rule.inherit is None:
                return stack[: position + 1]
        return stack

    def without(self, rule: Rule) -> Decision:
        """What would be decided if ``rule`` were not in the file."""
        ranked = tuple(item for item in self.ranked if item[1] is not rule)
        return replace(self, spec=resolve_stack([other for _, other in ranked]), ranked=ranked)


def strongest(decisions: Sequence[Decision]) -> Decision:
    """The decision for ops that have one output between them: that of the first whose winner is strongest.

    Of two ops, what counts is the kind of rule and then how near to its op the rule matches. The rules that
    lose are those of all the ops.
    """
    contest = [(_strength(item, op), item, op) for op in decisions for item in op.ranked]
    contest.sort(key=lambda entry: entry[0], reverse=True)
    return replace(contest[0][2], ranked=_each_once(item for _, item, _ in contest))


def _strength(item: Ranked, op: Decision) -> tuple[int, int]:
    tier, depth, *_ = item[0]
    return (tier, depth - op.depth if tier else 0)  # the global rule is as near to one op as to another


@dataclass(frozen=True, slots=True)
class _Matched:
    """Every rule that speaks of a module or of something around it, best first, and what comes of them."""

    ranked: tuple[Ranked, ...]
    spec: QConfigSpec | None


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules of one stage. ``sources`` are the texts that their places point into."""

    rules: tuple[Rule, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def resolve(self, targets: Sequence[Target]) -> list[Decision]:
        """Decide every target. Linear: what a module matches is found once, however many ops it holds.

        Raises:
            ConfigError: a rule inherits a qconfig that its own parameters do not fit.
        """
        try:
            resolver = _Resolver(self.rules)
            return [resolver.decide(target) for target in targets]
        except ConfigError as error:
            raise ConfigError(
                [replace(item, source=source_line(self.sources, item.place)) for item in error.diagnostics]
            ) from None


def resolve_stack(stack: Sequence[Rule]) -> QConfigSpec | None:
    """What comes of rules that match one op, best first: the winner's qconfig, or its changes on the rest."""
    if not stack:
        return None
    winner = stack[0]
    if winner.inherit is None:
        return winner.spec
    beneath = resolve_stack(stack[1:])
    if beneath is None:
        return None
    fields = overlay(beneath.fields(), dict(winner.inherit))
    _refuse_strangers(winner, fields)
    return make_spec(fields, name=f"{beneath.name.removesuffix('*')}*")


def _refuse_strangers(rule: Rule, fields: Fields) -> None:
    for slot in SLOTS:
        observer, fake_quant = kind(fields, f"{slot}_observer"), kind(fields, f"{slot}_fake_quant")
        known = accepted(observer, fake_quant)
        for name, item in slot_kwargs(fields, slot).items():
            if fake_quant is not None and name not in known:
                place = item.origin if isinstance(item.origin, Place) else rule.place
                summary = f"`{name}` is not a parameter of the observer `{observer}`"
                summary += f", which `{rule.pattern}` inherits"
                advice = f"write `{slot}_observer: {owners(name)[0]}` beside it" if owners(name) else ""
                raise ConfigError([Diagnostic("QC123", summary, place, help=advice)])


class _Resolver:
    """Caches matches by path, so that a module is looked at once."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        everywhere = [rule for rule in rules if rule.kind == "global"]
        self._names = NameIndex([(rule.pattern, rule) for rule in rules if _is_name(rule)])
        self._types: dict[str, list[Rule]] = {}
        for rule in rules:
            if rule.kind == "module_type":
                self._types.setdefault(rule.pattern, []).append(rule)
        self._root = _matched([((rule.tier, 0, 0, rule.order), rule) for rule in everywhere])
        self._cache: dict[tuple[int, str, Classes], _Matched] = {}

    def decide(self, target: Target) -> Decision:
        matched = self._root
        depth = 0
        for depth, (path, classes) in zip(target.depths(), target.modules(), strict=True):
            matched = self._step(matched, path, classes, depth)
        return Decision(target.name, matched.spec, matched.ranked, depth - depth % 2)

    def _step(self, above: _Matched, path: str, classes: Classes, depth: int) -> _Matched:
        key = (id(above), path, classes)
        found = self._cache.get(key)
        if found is None:
            # A pattern that matches every call of a module is no nearer to one call than to another.
            of_one_call = depth % 2 == 1
            spoken = {id(rule) for rank, rule in above.ranked if of_one_call and rank[1] == depth - 1}
            own = list(self._own(path, classes, depth, spoken))
            found = self._cache[key] = _matched([*own, *above.ranked]) if own else above
        return found

    def _own(self, path: str, classes: Classes, depth: int, spoken: Container[int]) -> Iterator[Ranked]:
        for rule in self._names.matches(path):
            if id(rule) not in spoken:
                yield (rule.tier, depth, 0, rule.order), rule
        if self._types:
            candidates = (rule for names in classes for name in names for rule in self._types.get(name, ()))
            for rule in {id(rule): rule for rule in candidates}.values():
                distance = rule.type_distance(classes)
                if distance is not None:
                    yield (rule.tier, depth, -distance, rule.order), rule


def _is_name(rule: Rule) -> bool:
    return rule.kind in ("module_name", "attribute", "template")


def _matched(ranked: list[Ranked]) -> _Matched:
    ranked.sort(key=_rank, reverse=True)
    unique = _each_once(ranked)
    return _Matched(unique, resolve_stack([rule for _, rule in unique]))


def _each_once(ranked: Iterable[Ranked]) -> tuple[Ranked, ...]:
    """Each rule where it is strongest, which is where it comes first."""
    unique: dict[int, Ranked] = {}
    for item in ranked:
        unique.setdefault(id(item[1]), item)
    return tuple(unique.values())


def _rank(item: Ranked) -> Rank:
    return item[0]


def in_order(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The same rules with ``order`` counted from their position."""
    return tuple(
        rule if rule.order == position else replace(rule, order=position)
        for position, rule in enumerate(rules)
    )
