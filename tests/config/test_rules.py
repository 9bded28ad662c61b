"""The resolver against an independent slow one, its laws, and its cost."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import given, settings, strategies as st

from quantcfg.config.findings import check_rules
from quantcfg.config.presets import PRESETS
from quantcfg.config.rules import Rule, RuleSet, Target, in_order
from quantcfg.config.spec import Field
from quantcfg.errors import ConfigError, Place

W8A8, W4A8, W8A16 = (PRESETS[name].calib for name in ("w8a8", "w4a8", "w8a16"))
SPECS = (W8A8, W4A8, W8A16, None)


def matches(pattern, path):
    """A pattern against a name, written from the definition: expand braces, then match segment by segment."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], path) is not None
    return any(segments_match(one.split("."), path.split(".") if path else []) for one in expanded(pattern))


def is_exact(pattern):
    return not pattern.startswith("re:") and not set(pattern) & set("*?{}")


def expanded(pattern):
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    choices = map(str, range(int(ends[1]), int(ends[2]) + 1)) if ends else found[1].split(",")
    return [
        one
        for choice in choices
        for one in expanded(pattern[: found.start()] + choice + pattern[found.end() :])
    ]


def segments_match(pattern, names):
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(segments_match(pattern[1:], names[count:]) for count in range(len(names) + 1))
    return bool(names) and text_matches(pattern[0], names[0]) and segments_match(pattern[1:], names[1:])


def text_matches(pattern, text):
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(text_matches(pattern[1:], text[count:]) for count in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and text_matches(pattern[1:], text[1:])


def slow_winner(rules, target):
    """The winner by the documented order, and the runner-up list, with no cleverness at all."""
    found = []
    for rule in rules:
        for depth, ((path, types), above) in enumerate(zip(target.chain, target.bases, strict=True)):
            if rule.kind == "global":
                found.append(((0, 0, 0, rule.order), rule))
            elif rule.kind == "module_type" and rule.pattern in types:
                found.append(((1, depth, 0, rule.order), rule))
            elif rule.kind == "module_type" and rule.subclasses and any(rule.pattern in a for a in above):
                steps = [rule.pattern in names for names in above].index(True) + 1
                found.append(((1, depth, -steps, rule.order), rule))
            elif rule.kind == "template" and rule.pattern == path:
                found.append(((2, depth, 0, rule.order), rule))
            elif rule.kind == "module_name" and not is_exact(rule.pattern) and matches(rule.pattern, path):
                found.append(((3, depth, 0, rule.order), rule))
            elif rule.kind == "module_name" and is_exact(rule.pattern) and rule.pattern == path:
                found.append(((4, depth, 0, rule.order), rule))
            elif rule.kind == "attribute" and rule.pattern == path:
                found.append(((5, depth, 0, rule.order), rule))
    found.sort(key=lambda item: item[0], reverse=True)
    ranked = list(dict.fromkeys(id(rule) for _, rule in found))
    by_id = {id(rule): rule for rule in rules}
    return [by_id[key] for key in ranked]


def slow_spec(ranked):
    """What ``inherit`` makes of the rules that match, best first: changes on the first whole qconfig."""
    changes = {}
    for rule in ranked:
        if rule.inherit is None:
            return None if rule.spec is None else told(rule.spec) | changes
        changes = {name: item.value for name, item in rule.inherit} | changes
    return None


def told(spec):
    return {
        "activation_observer": spec.activation.observer,
        "weight_qkwargs.dtype": spec.weight.dtype,
        "activation_qkwargs.dtype": spec.activation.dtype,
    }


def slow_matched(rule, targets):
    """The names that a rule matches: modules and ops, each once."""
    found = set()
    for target in targets:
        for (path, types), above in zip(target.chain, target.bases, strict=True):
            if rule.kind == "module_name":
                hit = matches(rule.pattern, path)
            else:
                hit = rule.pattern in types or (rule.subclasses and any(rule.pattern in a for a in above))
            found |= {path} if hit else set()
    return found


CHANGES = (
    (("activation_observer", Field("percentile", "x")),),
    (("weight_qkwargs.dtype", Field("qint3", "x")),),
    (("activation_qkwargs.dtype", Field("qint12", "x")), ("weight_qkwargs.dtype", Field("qint5", "x"))),
)
NAMES = st.sampled_from(["a", "b", "a1", "a2", "a10", "conv", "add_0"])
TYPES = ("T", "U", "pkg.T", "Base", "pkg.Root", "Root")
CLASSES = [  # what each class is called, and what those are called that it derives from
    (("T",), (("Base",), ("pkg.Root", "Root"))),
    (("pkg.T", "T"), (("U",), ("T",), ("Root",))),
    (("U",), ()),
    ((), ()),
]
SEGMENTS = st.one_of(
    NAMES, st.sampled_from(["*", "**", "a*", "?", "a?", "{a,b}", "a{1..2}", "{a,conv}*", "*{1..10}", "c*v"])
)
PATTERNS = st.one_of(
    st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join),
    st.sampled_from(["re:a.*", "re:.*conv", r"re:a\.(a|b)", "re:b", r"re:.*\d"]),
)


@st.composite
def rules(draw):
    made = []
    for _ in range(draw(st.integers(0, 8))):
        kinds = ["global", "module_type", "module_name", "module_name", "attribute", "template"]
        kind = draw(st.sampled_from(kinds))
        pattern = {
            "global": st.just(""),
            "module_type": st.sampled_from(TYPES),
            "module_name": PATTERNS,
            "attribute": st.lists(NAMES, min_size=1, max_size=2).map(".".join),
            "template": st.lists(NAMES, min_size=1, max_size=3).map(".".join),
        }[kind]
        subclasses = kind == "module_type" and draw(st.booleans())
        inherit = draw(st.sampled_from((None, None, *CHANGES)))
        spec = draw(st.sampled_from(SPECS)) if inherit is None else None
        place = Place("config.yaml", len(made) + 1)
        optional, expect = draw(st.booleans()), draw(st.sampled_from((None, None, 0, 1, 2)))
        rule = Rule(kind, draw(pattern), spec, place, optional, expect, 0, inherit, subclasses)
        made.append(rule)
    return in_order(made)


@st.composite
def target_lists(draw):
    types = {}
    targets = []
    for names in draw(st.lists(st.lists(NAMES, min_size=1, max_size=4), min_size=1, max_size=8)):
        paths = ["", *itertools.accumulate(names, "{}.{}".format)]
        classes = [types.setdefault(path, draw(st.sampled_from(CLASSES))) for path in paths]
        chain = tuple((path, own) for path, (own, _) in zip(paths, classes, strict=True))
        targets.append(Target(paths[-1], chain, tuple(above for _, above in classes)))
    return targets


@settings(max_examples=250)
@given(rules(), target_lists())
def test_the_resolver_agrees_with_a_slow_one(some_rules, targets):
    for target, decision in zip(targets, RuleSet(some_rules).resolve(targets), strict=True):
        ranked = slow_winner(some_rules, target)
        assert decision.target == target.name
        assert decision.winner is (ranked[0] if ranked else None)
        assert list(decision.losers) == ranked[1:]
        assert (decision.spec and told(decision.spec)) == slow_spec(ranked)
        if not ranked or ranked[0].inherit is None:
            assert decision.spec == (ranked[0].spec if ranked else None)


@settings(max_examples=100)
@given(rules(), target_lists())
def test_what_matches_too_few_is_found_as_a_slow_count_finds_it(some_rules, targets):
    ruleset = RuleSet(some_rules)
    found = check_rules(ruleset, targets, ruleset.resolve(targets))
    at = {code: {item.place.line for item in found if item.code == code} for code in ("QC201", "QC202")}
    for rule in some_rules:
        if rule.kind not in ("module_name", "module_type"):
            continue
        names, line = slow_matched(rule, targets), rule.place.line
        assert (line in at["QC202"]) == (rule.expect is not None and len(names) != rule.expect)
        if line not in at["QC202"] and not names:
            assert (line in at["QC201"]) == (not rule.optional and rule.expect is None)
        if rule.optional:
            assert line not in at["QC201"]


@settings(max_examples=100)
@given(rules(), target_lists())
def test_without_the_winner_the_first_loser_wins(some_rules, targets):
    for target, decision in zip(targets, RuleSet(some_rules).resolve(targets), strict=True):
        if decision.winner is not None:
            rest = tuple(rule for rule in some_rules if rule is not decision.winner)
            following = RuleSet(rest).resolve([target])[0]
            assert following.winner is (decision.losers[0] if decision.losers else None)


@settings(max_examples=100)
@given(rules(), target_lists())
def test_rules_that_match_nothing_change_nothing(some_rules, targets):
    stranger = Rule("module_name", "nowhere.*", W4A8, order=99)
    assert RuleSet(some_rules).resolve(targets) == RuleSet((stranger, *some_rules)).resolve(targets)


def op(name, *types):
    paths = ["", *itertools.accumulate(name.split("."), "{}.{}".format)]
    return Target(name, tuple((path, types if path == name else ()) for path in paths))


@pytest.mark.parametrize(
    ("weaker", "stronger"),
    [
        (Rule("global", "", W8A8), Rule("module_type", "Linear", W4A8)),
        (Rule("module_type", "Linear", W8A8), Rule("module_name", "a.*", W4A8)),
        (Rule("module_name", "a.*", W8A8), Rule("module_name", "a", W4A8)),
        (Rule("module_name", "a.fc", W8A8), Rule("attribute", "a", W4A8)),
        (Rule("module_name", "*", W8A8), Rule("module_name", "a.*", W4A8)),
        (Rule("module_name", "a", W8A8), Rule("module_name", "a.fc", W4A8)),
        (Rule("module_name", "a.f*", W8A8), Rule("module_name", "a.*c", W4A8)),
    ],
)
def test_the_documented_order(weaker, stronger):
    for rules_in_file in ((weaker, stronger), (stronger, weaker)):
        by_order_alone = stronger.tier == weaker.tier and stronger.pattern == "a.*c"
        decision = RuleSet(in_order(rules_in_file)).resolve([op("a.fc", "Linear")])[0]
        expected = rules_in_file[1] if by_order_alone else stronger
        assert decision.spec == expected.spec


def test_null_leaves_in_float_and_is_inherited():
    rules_in_file = in_order((Rule("global", "", W8A8), Rule("module_name", "a", None)))
    inside, outside = RuleSet(rules_in_file).resolve([op("a.b.add_0"), op("c")])
    assert (inside.spec, inside.winner) == (None, rules_in_file[1])
    assert outside.spec == W8A8


def test_inherit_starts_from_what_would_have_won():
    change = (("activation_observer", Field("percentile", "x")),)
    inheriting = Rule("module_name", "a", None, inherit=change)
    decision = RuleSet(in_order((Rule("global", "", W8A16), inheriting))).resolve([op("a")])[0]
    assert decision.spec is not None
    assert decision.spec.activation.observer == "percentile"
    assert decision.spec.activation.dtype == "qint16"
    assert decision.spec.weight == W8A16.weight
    assert len(decision.contributors) == 2


def test_inherit_on_float_stays_float():
    inheriting = Rule("module_name", "a", None, inherit=(("weight_observer", Field("mse", "x")),))
    assert RuleSet((inheriting,)).resolve([op("a")])[0].spec is None


def test_inherit_refuses_a_parameter_of_another_observer():
    change = (("activation_qkwargs.percentile", Field(99.0, "x")),)
    inheriting = Rule("module_name", "a", None, inherit=change)
    with pytest.raises(ConfigError) as caught:
        RuleSet(in_order((Rule("global", "", W8A8), inheriting))).resolve([op("a")])
    assert caught.value.diagnostics[0].summary == (
        "`percentile` is not a parameter of the observer `mse`, which `a` inherits"
    )


def test_ten_thousand_targets_and_a_thousand_rules_are_not_tried_with_each_other():
    made = [Rule("global", "", W8A8)]
    made += [Rule("module_name", f"blocks.{i}.attn.*", W8A8) for i in range(250)]
    made += [Rule("module_name", f"**.fc{{{i},{i + 1}}}", W8A8) for i in range(250)]
    made += [Rule("module_name", f"blocks.{i}.mlp.fc1", W8A8) for i in range(250)]
    made += [Rule("module_name", f"re:blocks\\.{i}\\.mlp\\..*", W8A8) for i in range(50)]
    made += [Rule("module_type", f"torch.nn.X{i}", W8A8) for i in range(199)]
    targets = [op(f"blocks.{i}.mlp.l{j}", "torch.nn.X3", "X3") for i in range(1000) for j in range(10)]
    assert len(made) == 1000
    start = time.process_time()
    RuleSet(in_order(made)).resolve(targets)
    # benchmarks.rules holds the second that it may take; ten million pairs would take minutes.
    assert time.process_time() - start < 10


def derived(name, *classes):
    """An op of a module whose class derives from others, nearest first."""
    return Target(name, (("", ("Net",)), (name, (classes[0],))), ((), tuple((base,) for base in classes[1:])))


def test_a_type_matches_the_class_alone_unless_told_otherwise():
    exact = Rule("module_type", "Linear", W4A8)
    wide = Rule("module_type", "Linear", W4A8, subclasses=True)
    for rule, expected in ((exact, None), (wide, W4A8)):
        assert RuleSet((rule,)).resolve([derived("fc", "MyLinear", "Linear", "Module")])[0].spec == expected
        assert RuleSet((rule,)).resolve([derived("fc", "Linear", "Module")])[0].spec == W4A8


def test_the_nearest_class_wins_whatever_the_order():
    far = Rule("module_type", "Module", W8A8, subclasses=True)
    near = Rule("module_type", "Linear", W4A8, subclasses=True)
    own = Rule("module_type", "MyLinear", W8A16)
    target = derived("fc", "MyLinear", "Linear", "Module")
    for some_rules in itertools.permutations((far, near, own)):
        decision = RuleSet(in_order(some_rules)).resolve([target])[0]
        assert [rule.pattern for rule in (decision.winner, *decision.losers)] == [
            "MyLinear",
            "Linear",
            "Module",
        ]


def test_a_row_of_a_table_stands_between_types_and_names():
    row = Rule("template", "a.fc", W8A16)
    for weaker, stronger in (
        (Rule("global", "", W8A8), row),
        (Rule("module_type", "Linear", W8A8), row),
        (row, Rule("module_name", "a", W4A8)),
        (row, Rule("module_name", "**", W4A8)),
        (row, Rule("attribute", "a", None)),
    ):
        for some_rules in ((weaker, stronger), (stronger, weaker)):
            decision = RuleSet(in_order(some_rules)).resolve([op("a.fc", "Linear")])[0]
            assert decision.winner.kind == stronger.kind
