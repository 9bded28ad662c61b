"""The resolved text means what the config means, says where each value is from, and TOML twins agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, strategies as st

from quantcfg.config.compare import compare_rules, compare_settings
from quantcfg.config.load import load_config
from quantcfg.config.resolved import resolved_text, scalar_text
from quantcfg.config.scalars import read_plain

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").iterdir())
TEAM = """\
version: 1
qconfigs:
  sensitive: {preset: w8a8, activation_qkwargs: {dtype: qint16}}
qconfig:
  global: w8a8
  module_name: {head: sensitive, "a*": w4a8}
qat:
  optimizer: {name: SGD, lr: 1e-5, momentum: 0.9}
"""
MINE = """\
version: 1
extends: [w4a4, team.yaml]
x-note: gone
qconfig:
  module_name:
    "a*": {preset: inherit, weight_observer: mse}
    "on": null
    'a "b"': {use: w8a8, optional: true}
  templates: [softmax_int16]
calib:
  qconfig: {global: w8a16}
"""


def same_meaning(a, b):
    return compare_rules(a, b) == [] and compare_settings(a, b) == []


def toml_of(value):
    """A TOML value, written by the rules of the format and none of ours; null is the text of that name."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_of(key)} = {toml_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_of, value))}]"
    if value is None:
        return '"null"'
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)


def twin_of(config):
    return "\n".join(f"{key} = {toml_of(value)}" for key, value in config.flattened().items())


@pytest.fixture
def team(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("team.yaml").write_text(TEAM)
    Path("mine.yaml").write_text(MINE)
    return load_config("mine.yaml", overrides=["qat.optimizer.lr=0.5", "qat.epochs=3"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
@pytest.mark.parametrize("origins", [True, False])
def test_it_means_the_same_as_every_shipped_config(path, origins, tmp_path):
    config = load_config(path)
    again = tmp_path / "again.yaml"
    again.write_text(resolved_text(config.tree, origins=origins))
    assert same_meaning(config, load_config(again))
    assert load_config(again).flattened() == config.flattened() == yaml.safe_load(again.read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_twin_in_the_other_format_means_the_same(path, tmp_path):
    config = load_config(path)
    twin = tmp_path / "twin.toml"
    twin.write_text(twin_of(config))
    assert same_meaning(config, load_config(twin))
    assert resolved_text(load_config(twin).tree, origins=False) == resolved_text(config.tree, origins=False)


def test_it_says_where_each_value_is_from(team):
    lines = {line.partition("#")[0].strip(): line for line in resolved_text(team.tree).splitlines()}
    origins = {text: line.partition("# ")[2] for text, line in lines.items() if "# " in line}
    assert origins["momentum: 0.9"] == "team.yaml:8"
    assert origins["lr: 0.5"] == "--set"
    assert origins["head: sensitive"] == "team.yaml:6"
    assert origins["weight_observer: mse"] == "mine.yaml:6"
    assert origins["templates: [softmax_int16]"] == "mine.yaml:9"
    assert "x-note" not in resolved_text(team.tree)


def test_extends_and_overrides_are_in_it(team, tmp_path):
    again = tmp_path / "again.yaml"
    again.write_text(resolved_text(team.tree))
    loaded = load_config(again)
    assert same_meaning(team, loaded)
    assert list(loaded.flattened()["qconfig"]["module_name"]) == list(
        team.flattened()["qconfig"]["module_name"]
    )
    assert not same_meaning(load_config("mine.yaml"), loaded)


def test_it_needs_no_file_but_itself(team, tmp_path):
    again = tmp_path / "again.yaml"
    again.write_text(resolved_text(team.tree))
    Path("team.yaml").unlink()
    assert load_config(again).files == (again,)


@given(st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=20)))
def test_a_scalar_is_read_back(value):
    text = scalar_text(value)
    (leaf,) = [event for event in yaml.parse(text) if isinstance(event, yaml.ScalarEvent)]
    assert (read_plain(leaf.value) if not leaf.style else leaf.value) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_read_back_by_every_reader(value):
    assert read_plain(scalar_text(value)) == value == yaml.safe_load(scalar_text(value))
    assert isinstance(yaml.safe_load(scalar_text(value)), float)
