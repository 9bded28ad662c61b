# ruff: noqa: E501  the texts are data
"""Composition: extends, --set, stages, named qconfigs, inherit; and what comes out is again a config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from quantcfg.config.load import load_config
from quantcfg.config.presets import PRESETS
from quantcfg.errors import ConfigError, UsageError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").iterdir())
V = "version: 1\n"


def meaning(config):
    """All that a config says, without places."""
    rules = {
        stage: [
            (
                r.kind,
                r.pattern,
                r.spec,
                r.optional,
                r.expect,
                r.inherit and [(k, f.value) for k, f in r.inherit],
            )
            for r in config.rules(stage).rules
        ]
        for stage in ("calib", "qat")
    }
    sections = [
        json.loads(part.model_dump_json(exclude={"qconfig"}))
        for part in (config.calib, config.qat, config.export, config.guards)
    ]
    return rules, sections, config.templates("calib"), config.templates("qat")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_config_is_good_and_has_no_warning(path):
    assert load_config(path).warnings == ()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_flattened_config_means_the_same(path, tmp_path):
    config = load_config(path)
    copy = tmp_path / "resolved.yaml"
    copy.write_text(yaml.safe_dump(config.flattened(), sort_keys=False))
    assert meaning(load_config(copy)) == meaning(config)


def toml_of(value):
    """A value as inline TOML; null is the text "null"."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_of, value)) + "]"
    return json.dumps("null" if value is None else value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_toml_twin_means_the_same(path, tmp_path):
    config = load_config(path)
    twin = tmp_path / "twin.toml"
    twin.write_text("\n".join(f"{key} = {toml_of(value)}" for key, value in config.flattened().items()))
    assert meaning(load_config(twin)) == meaning(config)


def test_the_shipped_toml_twin_means_the_same_as_its_yaml():
    yaml_config, toml_config = (
        load_config(ROOT / "configs" / f"topics_w8a8.{kind}") for kind in ("yaml", "toml")
    )
    assert meaning(yaml_config) == meaning(toml_config)


def patterns(config, stage="calib"):
    return [(rule.pattern, rule.spec and rule.spec.name) for rule in config.rules(stage).rules]


def test_extends_merges_key_by_key_and_a_rule_given_again_moves_to_the_end(tmp_path, load):
    (tmp_path / "base.yaml").write_text(
        V + "qconfig: {global: w8a8, module_name: {a: w8a8, 'b.*': w4a8, c: w8a16}}\ncalib: {batches: 8}\n"
        "qat: {epochs: 3, bn: keep}\n"
    )
    config = load(V + "extends: base.yaml\nqconfig: {module_name: {a: w4a4}}\nqat: {epochs: 5}\n")
    assert patterns(config) == [("", "w8a8"), ("b.*", "w4a8"), ("c", "w8a16"), ("a", "w4a4")]
    assert (config.calib.batches, config.qat.epochs, config.qat.bn) == (8, 5, "keep")
    assert [path.name for path in config.files] == ["c.yaml", "base.yaml"]


def test_a_qconfig_that_is_given_again_is_replaced_whole(tmp_path, load):
    (tmp_path / "base.yaml").write_text(V + "qconfig: {module_name: {a: {calib: w8a8, qat: w4a4}}}\n")
    config = load(V + "extends: base.yaml\nqconfig: {module_name: {a: {weight_observer: mse}}}\n")
    assert config.rules("qat").rules[0].spec.weight.observer == "mse"


def test_a_file_that_two_files_extend_counts_once_and_first(tmp_path, load):
    (tmp_path / "base.yaml").write_text(V + "calib: {batches: 1}\nqat: {epochs: 1}\n")
    (tmp_path / "left.yaml").write_text(V + "extends: base.yaml\ncalib: {batches: 2}\n")
    (tmp_path / "right.toml").write_text('version = 1\nextends = "base.yaml"\nqat = {epochs = 2}\n')
    config = load(V + "extends: [left.yaml, right.toml]\n")
    assert (config.calib.batches, config.qat.epochs) == (2, 2)


def test_a_preset_can_be_extended(load):
    assert patterns(load(V + "extends: w4a8\n")) == [("", "w4a8")]


def test_a_circle_of_files_is_shown(tmp_path, brief):
    (tmp_path / "b.yaml").write_text(V + "extends: d/../c.yaml\n")
    (tmp_path / "d").mkdir()
    assert brief(V + "extends: b.yaml\n") == [
        "QC109 2:10 `extends` goes in a circle: c.yaml -> b.yaml -> c.yaml"
    ]


def test_errors_of_all_files_come_at_once(tmp_path, shown):
    (tmp_path / "base.yaml").write_text(V + "calib: {batchs: 1}\n")
    assert shown(V + "extends: [base.yaml, nowhere.yaml]\nqat: {epoch: 1}\n") == (
        "error[QC108]: `extends`: nowhere.yaml: no such file\n"
        " --> c.yaml:2:22\n"
        "  |\n"
        "2 | extends: [base.yaml, nowhere.yaml]\n"
        "  |                      ^^^^^^^^^^^^\n"
        "  |\n"
        "\n"
        "c.yaml: 1 error"
    )
    assert [
        text.split(" unknown")[0]
        for text in shown(V + "extends: [base.yaml]\nqat: {epoch: 1}\n").splitlines()
        if "unknown" in text
    ] == ["error[QC101]:", "error[QC101]:"]


def test_the_calib_rules_are_merged_over_the_shared_ones(load):
    config = load(
        V + "qconfig: {global: w8a8, module_name: {a: w4a8}}\ncalib: {qconfig: {module_name: {a: w8a16}}}\n"
    )
    assert patterns(config, "calib") == [("", "w8a8"), ("a", "w8a16")]
    assert patterns(config, "qat") == [("", "w8a8"), ("a", "w4a8")]


def test_a_qconfig_may_differ_by_stage_also_by_name(load):
    config = load(
        V + "qconfigs: {x: {calib: w8a16, qat: null}}\nqconfig: {global: x, module_name: {a: {use: x}}}\n"
    )
    assert patterns(config, "calib") == [("", "x"), ("a", "x")]
    assert patterns(config, "qat") == [("", None), ("a", None)]


def test_fields_know_where_they_come_from(load, tmp_path):
    config = load(V + "qconfigs:\n  s:\n    preset: w8a16\n    weight_observer: mse\nqconfig: {global: s}\n")
    origins = dict(config.rules("calib").rules[0].spec.origins)
    assert str(origins["weight_observer"]) == f"{tmp_path}/c.yaml:5:22"
    assert origins["activation_qkwargs.dtype"] == "preset w8a16"
    assert origins["weight_qkwargs.ch_axis"] == "default"


def test_changing_the_observer_leaves_the_parameters_of_the_old_one_behind(load):
    text = V + (
        "qconfigs: {p: {activation_observer: percentile, activation_qkwargs: {percentile: 99.0, dtype: qint16}}}\n"
        "qconfig: {global: {preset: p, activation_observer: mse}}\n"
    )
    activation = load(text).rules("calib").rules[0].spec.activation
    assert activation.kwargs == {"dtype": "qint16"}


def test_set_equals_editing_the_file(load):
    edited = load(V + "qconfig: {global: w8a8, module_name: {a.b: w4a4, c: w8a16}}\nqat: {epochs: 7}\n")
    start = V + "qconfig: {global: w8a8, module_name: {a.b: w4a8, c: w8a16}}\n"
    assert meaning(load(start, overrides=["qat.epochs=7", "qconfig.module_name.a.b=w4a4"])) == meaning(edited)


def test_set_reaches_into_a_qconfig_and_takes_quoted_names(load):
    config = load(
        V + "qconfig: {module_name: {a.b: {preset: w8a8}}}\n",
        overrides=["qconfig.module_name.a.b.weight_observer=mse", 'qconfig.module_name."x.y"=w8a8'],
    )
    first, second = config.rules("calib").rules
    assert first.spec.weight.observer == "mse"
    assert second.pattern == "x.y"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("qat.epoch=3", "QC101 1:5 unknown key `epoch` in `qat`"),
        ("qat.epochs=x", "QC103 1:12 `qat.epochs`: expected a whole number, got the text `x`"),
        ("qat.epochs", "QC111 1:1 `--set qat.epochs` is not of the form path.to.key=value"),
        ("qat..epochs=1", "QC111 1:5 `--set qat..epochs`: an empty key"),
        (
            "qconfig.global.preset=w8a8",
            "QC110 1:16 `qconfig.global` is the text `w8a8`, there is no `preset` in it",
        ),
        ("qat.optimizer={name: SGD", "QC001 1:15 not valid YAML: did not find expected ',' or '}'"),
        ("version=2", "QC110 1:1 `version` belongs to a file and cannot be set"),
    ],
)
def test_a_wrong_set_is_pointed_at(override, expected, brief):
    assert brief(V + "qconfig: {global: w8a8}\n", overrides=[override]) == [expected]


def test_notes_are_free_and_names_may_look_like_notes(load):
    config = load(V + "x-a: [1, {b: 2}]\ncalib: {x-why: because}\nqconfig: {module_name: {x-ray: w8a8}}\n")
    assert patterns(config) == [("x-ray", "w8a8")]
    assert config.flattened() == {"version": 1, "calib": {}, "qconfig": {"module_name": {"x-ray": "w8a8"}}}


def test_a_config_that_quantizes_nothing_warns(load):
    assert [item.code for item in load(V).warnings] == ["QC203"]


def test_a_deprecated_preset_warns_with_its_new_name(load):
    warnings = load(V + "qconfig: {global: default_qat_16bit_fake_quant_qconfig}\n").warnings
    assert [str(item).split(": ", 1)[1] for item in warnings] == [
        "warning[QC128]: the preset `default_qat_16bit_fake_quant_qconfig` is now called "
        "`default_qat_8bit_weight_16bit_act_fake_quant_qconfig`"
    ]


@pytest.mark.parametrize(
    ("kwargs", "warned"),
    [
        ("activation_qkwargs: {dtype: quint8}", True),
        ("weight_qkwargs: {dtype: quint4, qscheme: per_tensor_symmetric}", True),
        ("activation_observer: fixed_scale, activation_qkwargs: {dtype: quint8, threshold: 6.0}", True),
        ("activation_observer: fixed_scale, activation_qkwargs: {dtype: quint8, scale: 0.01}", False),
        ("activation_qkwargs: {dtype: quint8, qscheme: per_tensor_affine}", False),
        ("activation_qkwargs: {dtype: qint8}", False),
    ],
)
def test_an_unsigned_dtype_with_a_symmetric_qscheme_warns(kwargs, warned, load):
    warnings = load(V + f"qconfig: {{global: {{preset: w8a8, {kwargs}}}}}\n").warnings
    assert [item.code for item in warnings] == ["QC133"] * warned


@pytest.mark.parametrize(
    ("percentile", "advice"), [("0.9999", ["99.99"]), ("1", ["100"]), ("1.5", []), ("99.99", [])]
)
def test_a_percentile_that_looks_like_a_fraction_warns(percentile, advice, load):
    text = f"activation_observer: percentile, activation_qkwargs: {{percentile: {percentile}}}"
    warnings = load(V + f"qconfig: {{global: {{{text}}}}}\n").warnings
    assert [(item.code, item.help) for item in warnings] == [
        ("QC134", f"write `percentile: {percent}`") for percent in advice
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_used_and_changed(name, load):
    config = load(
        V + f"qconfig: {{global: {name}, module_name: {{a: {{preset: {name}, weight_observer: mse}}}}}}\n"
    )
    for stage in ("calib", "qat"):
        plain, changed = config.rules(stage).rules
        assert plain.spec == PRESETS[name].stage(stage)
        assert changed.spec.activation == plain.spec.activation
        assert changed.spec.weight.observer == "mse"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.yaml", "{}/nowhere.yaml: no such file"),
        ("here.txt", "{}/here.txt: a config is a .yaml, .yml or .toml file"),
        ("folder.yaml", "{}/folder.yaml: not a regular file"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_usage_error(name, message, tmp_path):
    (tmp_path / "here.txt").write_text(V)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UsageError) as caught:
        load_config(tmp_path / name)
    assert caught.value.message == message.format(tmp_path)


def test_a_run_or_a_model_file_in_the_place_of_a_config_is_told_so(tmp_path):
    (tmp_path / "run/config").mkdir(parents=True)
    (tmp_path / "run/config/resolved.yaml").write_text(V)
    for name, hint in (
        ("run", f"the config of that run is {tmp_path}/run/config/resolved.yaml"),
        ("model.py", "a model file stands before the config"),
    ):
        with pytest.raises(UsageError) as caught:
            load_config(tmp_path / name)
        assert caught.value.hint == hint


def test_a_near_file_is_named(tmp_path):
    (tmp_path / "vit_int8.yaml").write_text(V)
    with pytest.raises(UsageError) as caught:
        load_config(tmp_path / "vit_in8.yaml")
    assert caught.value.hint == f"did you mean {tmp_path}/vit_int8.yaml?"


def test_a_file_is_near_by_its_name_and_not_by_its_ending(tmp_path):
    (tmp_path / "json.yaml").write_text(V)
    with pytest.raises(UsageError) as caught:
        load_config(tmp_path / "good.yaml")
    assert caught.value.hint == ""
    with pytest.raises(UsageError) as caught:
        load_config(tmp_path / "json.yml")
    assert caught.value.hint == f"did you mean {tmp_path}/json.yaml?"


def test_files_of_one_call_are_layers(tmp_path):
    (tmp_path / "a.yaml").write_text(V + "calib: {batches: 1}\n")
    (tmp_path / "b.yaml").write_text(V + "calib: {batches: 2}\n")
    assert load_config(tmp_path / "a.yaml", tmp_path / "b.yaml").calib.batches == 2


def test_errors_are_sorted_and_survive_pickling(errors, load):
    import pickle

    text = V + "qat: {bn: folded, epochs: 0}\ncalib: {batches: 0}\n"
    places = [(item.place.line, item.place.column) for item in errors(text)]
    assert places == sorted(places) and len(places) == 3
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert pickle.loads(pickle.dumps(caught.value)).diagnostics == caught.value.diagnostics
