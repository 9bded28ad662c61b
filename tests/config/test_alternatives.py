"""Names between braces that match nothing while others do, and what is no such name."""

from __future__ import annotations

import pytest

from quantcfg.config.findings import check_rules
from quantcfg.config.rules import Rule, RuleSet
from quantcfg.render.diagnostics import format_diagnostic

NONE = "no name of this model"
IDLE = {"spare": (("Linear",),)}


YAML = "version: 1\nqconfig:\n  module_name:\n    "
TOML = "version = 1\n[qconfig.module_name]\n"


@pytest.fixture
def findings(load, targets):
    def of(rule, *, name="c.yaml", head=YAML):
        rules = load(f"{head}{rule}\n", name=name).rules("calib")
        return check_rules(rules, targets, rules.resolve(targets), IDLE)

    return of


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("blocks.*.{mlp,atn}: w4a8", [(19, 3, "did you mean `attn`?")]),
        ("'blocks.*.{mlp,atn}': w4a8", [(20, 3, "did you mean `attn`?")]),
        ('"bl\\u006fcks.*.{mlp,atn}": w4a8', [(5, 25, "did you mean `attn`?")]),
        ("'{blocks,hed}': w4a8", [(14, 3, "did you mean `head`?")]),
        ("'**.{fc1,cf2}': w4a8", [(14, 3, "did you mean `fc2`?")]),
        ("blocks.{0,7}.mlp: w4a8", [(15, 1, NONE)]),
        ("blocks.{0,7}.{mlp,xyz}: w4a8", [(15, 1, NONE), (23, 3, NONE)]),
        ("blocks.{0,1}.{ml*,xm*}*: w4a8", [(23, 3, "did you mean `m`?")]),
        ("blocks.0.{ml,x}p.{fc1,fc2}: w4a8", [(18, 1, NONE)]),
        ("blocks.{0..9}.mlp: w4a8", []),
        ("blocks.*.{mlp,attn}: w4a8", []),
        ("'blocks.{0,*}': w4a8", []),
        ("'{head,spare}': w4a8", []),
        ("'re:blocks\\.(0|7)': w4a8", []),
        ("blocks.*.{mlp,atn}: {use: w4a8, optional: true}", []),
    ],
)
def test_where_an_alternative_is_that_matches_nothing(findings, rule, found):
    assert [(f.code, f.place.column, f.place.length, f.label) for f in findings(rule)] == [
        ("QC204", *item) for item in found
    ]


def test_a_place_in_toml(findings):
    (finding,) = findings('"blocks.*.{mlp,atn}" = "w4a8"', name="c.toml", head=TOML)
    assert (finding.place.line, finding.place.column, finding.place.length) == (3, 16, 3)


def test_a_rule_from_code_has_no_place_and_says_as_much(targets):
    rules = RuleSet((Rule("module_name", "blocks.*.{mlp,atn}", None),))
    (finding,) = check_rules(rules, targets, rules.resolve(targets))
    assert format_diagnostic(finding) == (
        "error[QC204]: `atn` of the rule `blocks.*.{mlp,atn}` matches nothing\n"
        "  = did you mean `attn`?\n"
        "  = note: matching stops at segment 3: `blocks.0` has children mlp, attn\n"
        "  = note: `blocks.*.attn` matches 2\n"
        "  = help: write `attn`"
    )
