"""The JSON Schema: kept in step, true to the loader on good files, and strict on bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from quantcfg.config.json_schema import config_schema, schema_text
from quantcfg.config.load import load_config
from quantcfg.config.parameters import PARAMETERS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").iterdir())
VALIDATOR = jsonschema.Draft202012Validator(config_schema())

BAD = [
    "{}",
    "version: 2",
    "version: 1\ncalib: {batchs: 1}",
    'version: 1\ncalib: {batches: "1"}',
    "version: 1\ncalib: {batches: 0}",
    "version: 1\ncalib: {batches: true}",
    "version: 1\ncalib:",
    "version: 1\nqat: {optimizer: {name: sgd, lr: 0.1}}",
    "version: 1\nqat: {optimizer: {name: SGD}}",
    "version: 1\nqat: {optimizer: {name: SGD, lr: 0.1, betas: [0.9, 0.99]}}",
    "version: 1\nqat: {bn: folded}",
    "version: 1\nqconfig: {global: 8}",
    "version: 1\nqconfig: {global: [w8a8]}",
    "version: 1\nqconfig: {global: {activation_observer: minmax}}",
    "version: 1\nqconfig: {global: {activation_observer: mse, activation_qkwargs: {percentile: 99.0}}}",
    "version: 1\nqconfig: {global: {weight_qkwargs: {dtype: int8}}}",
    "version: 1\nqconfig: {global: {weight_qkwargs: {bits: 8}}}",
    "version: 1\nqconfig: {module_name: {a: {use: w8a8, optinal: true}}}",
    "version: 1\nqconfig: {module_name: {a: {calib: w8a8}}}",
    "version: 1\nqconfig: {templates: [high_precision]}",
    'version: 1\nguards: {quantized_macs: "95 %"}',
    "version: 1\nguards: {quantized_macs: 0.95}",
    "version: 1\nextend: base.yaml",
    "[]",
]


def test_the_file_in_schemas_is_what_the_program_prints():
    assert (ROOT / "schemas" / "quantcfg.schema.json").read_text() == schema_text()


def test_it_is_a_valid_schema():
    jsonschema.Draft202012Validator.check_schema(config_schema())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_accepts_every_shipped_config(path):
    VALIDATOR.validate(load_config(path).flattened())


@pytest.mark.parametrize("text", BAD)
def test_it_refuses_what_the_loader_refuses(text, errors):
    assert errors(text)
    assert not VALIDATOR.is_valid(json.loads(json.dumps(yaml.safe_load(text))))


def test_every_field_has_a_description():
    schema = config_schema()
    lacking = [
        (where, name)
        for where, part in [("", schema), *schema["$defs"].items()]
        for name, field in part.get("properties", {}).items()
        if not field.get("description") and "$ref" not in field and "anyOf" not in field
    ]
    assert lacking == []


def test_the_kinds_of_the_schema_are_those_of_the_parameters():
    fields = config_schema()["$defs"]["QConfigFields"]["properties"]
    observers = fields["activation_observer"]["anyOf"][0]["enum"]
    fake_quants = fields["weight_fake_quant"]["anyOf"][0]["enum"]
    assert [*observers, *fake_quants] == list(PARAMETERS)
