"""The template `sensitive_ops`: which rows of a table become rules, where they point, and what is refused."""

from __future__ import annotations

import json

import pytest

from quantcfg.config.findings import check_rules
from quantcfg.config.load import load_config

ROWS = [
    ["blocks.0.mlp.fc1", "weight", "Linear", 9.0, "qint8"],
    ["blocks.0.mlp.fc2", "activation", "Linear", 8e-05, "qint8", "12(0.5%)"],
    ["head", "activation", "Linear", 7.0, "qint16"],
    ["blocks.1.attn.fc1", "activation"],
]
CONFIG = "version: 1\nqconfig:\n  global: w8a8\n  templates:\n    - high_precision_output\n    - {}\n"
INLINE = json.dumps(ROWS)


def config(options, table=INLINE, use="w8a16"):
    return CONFIG.format(f"{{name: sensitive_ops, table: {table}, use: {use}, {options}}}")


def chosen(loaded, stage="calib"):
    return [rule.pattern for rule in loaded.rules(stage).rules if rule.kind == "template"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("topk: 1", ["blocks.0.mlp.fc2"]),
        ("topk: 9", ["blocks.0.mlp.fc2", "head", "blocks.1.attn.fc1"]),
        ("ratio: 0.34", ["blocks.0.mlp.fc2", "head"]),
        ("ratio: 1.0", ["blocks.0.mlp.fc2", "head", "blocks.1.attn.fc1"]),
        ("topk: 9, sensitive_type: weight", ["blocks.0.mlp.fc1"]),
        ("topk: 9, origin_dtype: qint16", ["head", "blocks.1.attn.fc1"]),  # a short row is of any dtype
    ],
)
def test_rows_are_filtered_and_then_counted(load, options, expected):
    loaded = load(config(options))

    assert chosen(loaded) == chosen(loaded, "qat") == expected
    assert loaded.templates("calib") == ("high_precision_output",)


def test_a_table_is_found_beside_the_config_that_names_it(tmp_path):
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "table.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "team" / "base.yaml").write_text(config("topk: 2", "table.json"))
    (tmp_path / "c.yaml").write_text("version: 1\nextends: team/base.yaml\n")

    loaded = load_config(tmp_path / "c.yaml")
    first = next(rule for rule in loaded.rules("calib").rules if rule.kind == "template")

    assert chosen(loaded) == ["blocks.0.mlp.fc2", "head"]
    assert (first.place.file, first.place.line) == (str(tmp_path / "team" / "table.json"), 10)
    assert [path.name for path in loaded.files] == ["c.yaml", "base.yaml", "table.json"]


def test_the_resolved_config_holds_the_rows(tmp_path, load):
    (tmp_path / "table.yaml").write_text("- [head, activation]\n")
    loaded = load(config("topk: 1", "table.yaml"))
    (tmp_path / "table.yaml").unlink()

    again = load(json.dumps(loaded.flattened()), name="resolved.yaml")

    assert chosen(again) == ["head"]


def test_what_a_rule_names_it_gets_and_types_give_way(load, targets):
    text = config("topk: 3") + "  module_type: {Linear: w4a8}\n  module_name: {head: null}\n"
    ruleset = load(text).rules("calib")
    by_name = {decision.target: decision for decision in ruleset.resolve(targets)}

    assert by_name["blocks.0.mlp.fc2"].spec.name == "w8a16"
    assert by_name["blocks.0.mlp.fc1"].spec.name == "w4a8"
    assert by_name["head"].spec is None


def test_the_chosen_ops_may_inherit(load, targets):
    use = "{preset: inherit, activation_qkwargs: {dtype: qint16}}"
    text = config("topk: 1", use=use) + "  module_type: {Linear: w4a8}\n"
    by_name = {decision.target: decision for decision in load(text).rules("calib").resolve(targets)}

    found = by_name["blocks.0.mlp.fc2"].spec
    assert (found.activation.dtype, found.weight.dtype) == ("qint16", "qint4")


def test_an_op_that_the_model_lacks_is_an_error_at_its_row(tmp_path, load, targets):
    (tmp_path / "table.json").write_text('[["head", "activation"],\n ["blocks.0.mlp.fc3", "activation"]]')
    ruleset = load(config("topk: 2", "table.json")).rules("calib")

    (finding,) = check_rules(ruleset, targets, ruleset.resolve(targets))

    assert (finding.code, finding.place.line, finding.severity) == ("QC201", 2, "error")
    assert finding.place.file.endswith("table.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (config("topk: 0"), "QC105 6:"),
        (config("ratio: 0.0"), "QC105 6:"),
        (config("ratio: 1.5"), "QC105 6:"),
        (config("topk: 1, ratio: 0.5"), "QC107 6:"),
        (config("sensitive_type: weight"), "QC107 6:7 `sensitive_ops` needs `topk` or `ratio`"),
        (config("topk: 1, sensitive_type: wieght"), "QC104 6:"),
        (config("topk: 1, k: 1"), "QC101 6:"),
        (config("topk: 1", use="w8a61"), "QC120 6:"),
        (config("topk: 1", "no.json"), "QC108 6:36"),
        (config("topk: 1", "table.txt"), "QC108 6:36"),
        (config("topk: 1", "7"), "QC103 6:36"),
        (config("topk: 1", "[[head, activatoin]]"), "QC103 6:44 a row is"),
        (config("topk: 1", "[[head]]"), "QC103 6:"),
        (config("topk: 1", '[["head.*", activation]]'), "QC103 6:38 a row starts with the name"),
        (config("topk: 1", "[[7, activation]]"), "QC103 6:38 a row starts with the name"),
        (CONFIG.format("sensitive_ops"), "QC103 6:7"),
        (CONFIG.format("{table: [[head, activation]], topk: 1, use: w8a16}"), "QC102 6:7"),
    ],
)
def test_what_is_refused_has_one_error_with_a_place(brief, text, expected):
    (message,) = brief(text)
    assert message.startswith(expected)


def test_a_broken_table_points_into_its_file(tmp_path, errors):
    (tmp_path / "table.json").write_text('[["head", "activation"],\n')
    (error,) = errors(config("topk: 1", "table.json"))

    assert error.place.file.endswith("table.json")


def test_subclasses_are_for_types(brief):
    text = "version: 1\nqconfig:\n  module_name:\n    a: {use: w8a8, subclasses: true}\n"
    assert brief(text) == ["QC107 4:20 `subclasses` is for rules of `module_type`"]


def test_a_base_class_that_matches_nothing_is_told_of_its_subclasses(load, targets):
    from dataclasses import replace

    below = [replace(t, bases=((),) * (len(t.chain) - 1) + ((("m.Base", "Base"),),)) for t in targets]
    ruleset = load("version: 1\nqconfig:\n  module_type:\n    Base: w8a8\n").rules("calib")
    (finding,) = check_rules(ruleset, below, ruleset.resolve(below))

    assert finding.help == "9 modules derive from it: write `{use: ..., subclasses: true}`"
    wide = load("version: 1\nqconfig:\n  module_type:\n    Base: {use: w8a8, subclasses: true}\n").rules(
        "calib"
    )
    assert check_rules(wide, below, wide.resolve(below)) == []
