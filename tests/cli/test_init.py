"""The starter config and the schema of a model: valid as they are, and with each comment taken off."""

import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[2]
ODD = """
import torch
from torch import nn


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.add_module("on", nn.Linear(3, 3))
        self.add_module("a b: #", nn.Linear(3, 3))

    def forward(self, x):
        return self._modules["a b: #"](self.on(self.body(x))) + 1


def build_model():
    return Odd()


def example_inputs():
    return (torch.rand(2, 3),)
"""


@pytest.mark.parametrize("example", ["digits", "topics"])
def test_the_starter_of_an_example_validates_and_runs_as_it_is(project, example):
    model = str(ROOT / "examples" / example / "model.py")
    assert project.run("init", model, "-o", "mine.yaml").code == 0
    checked = project.run("validate", "mine.yaml", "--model", model, "--strict")
    assert (checked.code, checked.out, checked.err) == (0, "mine.yaml: ok\n", "")

    done = project.run("calib", model, "mine.yaml", "-o", "run", "-q", "--set", "calib.batches=2")
    assert done.code == 0, done.err
    assert "run/manifest.json" in project.names()


def test_every_rule_in_a_comment_is_a_rule_of_this_model(project):
    text = project.run("init", "model.py").out
    rules = re.findall(r"^ +# +(\S+): (w\w+) +# ", text, re.MULTILINE)
    assert rules
    for name, value in rules:
        kind = "module_type" if name[0].isupper() or name.startswith("torch") else "module_name"
        config = f"version: 1\nqconfig:\n  global: w4a4\n  {kind}:\n    {name}: {value}\n"
        project.write("one.yaml", config)
        done = project.run("validate", "one.yaml", "--model", "model.py", "--strict")
        assert (done.code, done.err) == (0, ""), config


def test_odd_names_and_a_model_without_data(project):
    project.write("odd.py", ODD)
    assert project.run("init", "odd.py", "-o", "odd.yaml").code == 0
    text = (project.path / "odd.yaml").read_text()

    assert '"on": w8a16' in text
    assert '"a b: #": w8a16' in text
    assert "# qat:" in text
    assert project.run("validate", "odd.yaml", "--model", "odd.py", "--strict").code == 0


def test_init_replaces_nothing_unasked(project):
    assert project.run("init", "model.py", "-o", "config.yaml").code == 2
    assert project.run("init", "model.py", "-o", "config.yaml", "--force").code == 0
    assert project.run("init", "model.py", "-o", "config.json").code == 2


def test_the_schema_of_a_model_lists_its_names_and_accepts_what_is_valid(project):
    schema = json.loads(project.run("schema", "--model", "model.py").out)
    rules = schema["$defs"]["Rules"]["properties"]

    assert set(rules["module_name"]["properties"]) == {
        "conv", "relu_0", "mean_0", "add_0", "drop", "classifier",
    }  # fmt: skip
    assert {"torch.nn.Linear", "Conv2d", "Net"} <= set(rules["module_type"]["properties"])
    Draft202012Validator.check_schema(schema)
    valid = Draft202012Validator(schema).is_valid
    assert valid(yaml.safe_load(project.run("init", "model.py").out))
    assert valid({"version": 1, "qconfig": {"module_name": {"conv": "w8a8", "c*": {"use": None}}}})
    assert not valid({"version": 1, "qconfig": {"module_name": {"conv": 8}}})


def test_the_schema_lies_beside_the_config_that_names_it(project):
    (project.path / "configs").mkdir()
    project.run("init", "model.py", "-o", "configs/first.yaml")
    text = (project.path / "configs/first.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=quantcfg.schema.json\n")
    assert project.names("configs") == ["first.yaml", "quantcfg.schema.json"]
