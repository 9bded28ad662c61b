"""Guards on the plan: coverage, size, bits, and what the ops of a pattern have to be."""

from __future__ import annotations

import pytest

from quantcfg.config.load import load_config
from quantcfg.errors import ConfigError, GuardError
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import plan_of
from quantcfg.stages.guards import check_plan
from tests.prepare.models import ResNet


@pytest.fixture
def failed(tmp_path):
    import torch

    def failed_guards(guards, rules="{global: w8a8, module_name: {classifier: w8a32, blocks.1: null}}"):
        path = tmp_path / "c.yaml"
        path.write_text(f"version: 1\nqconfig: {rules}\nguards:\n  {guards}\n")
        config = load_config(path)
        plan = plan_of(prepare(ResNet().eval(), config, example_inputs=torch.rand(2, 3, 8, 8)))
        try:
            check_plan(config, plan)
        except GuardError as error:
            return error.message
        return ""

    return failed_guards


@pytest.mark.parametrize(
    ("guards", "message"),
    [
        ("ops: {stem: {weight: qint8}}", ""),
        ("ops: {stem: {activation: qint8}}", ""),
        ("ops: {classifier: {activation: float, weight: qint8}}", ""),
        ("ops: {blocks.1: {activation: float, weight: float}}", ""),
        ("ops: {'blocks.*.conv1': {weight: qint8}}",
         "ops.blocks.*.conv1.weight does not hold for 1 of 2: 'blocks.1.conv1' (float), wanted qint8"),
        ("ops: {classifier: {activation: qint8}}",
         "ops.classifier.activation does not hold for 1 of 1: 'classifier' (float), wanted qint8"),
        ("ops: {nothing.here: {weight: qint8}}", "ops.nothing.here.weight matches nothing, wanted qint8"),
        ("ops: {'blocks.{0,7}': {weight: qint8}}",
         "ops.blocks.{0,7}.weight matches nothing with '7', wanted qint8"),
        ("ops: {'{blocks,stm,hed}.*': {weight: qint8}}",
         "ops.{blocks,stm,hed}.*.weight matches nothing with 'stm', 'hed', wanted qint8"),
        ("ops: {'{stem,pool}': {weight: qint8}}",
         "ops.{stem,pool}.weight matches nothing with 'pool', wanted qint8"),
        ("ops: {'{stem,classifier}': {weight: qint8}}", ""),
        ("ops: {'blocks.{0..7}.conv1': {weight: float}}",
         "ops.blocks.{0..7}.conv1.weight does not hold for 1 of 2: 'blocks.0.conv1' (qint8), wanted float"),
        ("ops: {'re:stem{1,2}': {weight: qint8}}", ""),
        ('size: "<= 1 GiB"', ""),
        ('weight_bits: "<= 32"', ""),
        ('weight_bits: "<= 8"', "weight_bits is 18.21, wanted <= 8"),
    ],
)  # fmt: skip
def test_a_guard_holds_or_says_what_is_otherwise(failed, guards, message):
    assert failed(guards) == message


def test_the_size_is_in_bytes(failed):
    message = failed('size: "<= 0.1 KiB"')
    size = int(message.split()[2].replace(",", ""))
    assert message == f"size is {size:,} B, wanted <= 0.1 KiB"
    assert failed(f'size: "<= {size} B"') == ""
    assert failed(f'size: "< {size} B"') != ""


@pytest.mark.parametrize(
    ("guards", "code", "words"),
    [
        ("size: '<= 24 MB'", "QC105", 'such as "<= 24 MiB"'),
        ("size: 24", "QC103", 'such as "<= 24 MiB"'),
        ("ops: {'a..b': {weight: qint8}}", "QC130", "empty segment"),
        ("ops: {a: {weight: qint88}}", "QC104", "qint8"),
        ("ops: {a: {wieght: qint8}}", "QC101", "weight"),
    ],
)
def test_a_guard_that_cannot_be_read_is_an_error_with_a_place(tmp_path, guards, code, words):
    path = tmp_path / "c.yaml"
    path.write_text(f"version: 1\nqconfig: {{global: w8a8}}\nguards:\n  {guards}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (found,) = caught.value.diagnostics
    assert (found.code, found.place.line) == (code, 4)
    assert words in f"{found.summary} {found.label} {found.help}"
