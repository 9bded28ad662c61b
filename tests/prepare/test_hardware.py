"""What a target does not take is refused with its line, left in float or adjusted, before any compute."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from quantcfg.config.hardware import PROFILES, adjusted, fits, grid_of
from quantcfg.config.load import load_config
from quantcfg.config.spec import FakeQuantSpec
from quantcfg.errors import ConfigError
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import fake_quants, plan_of
from tests.prepare.models import ResNet


class Upsampler(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose2d(4, 4, 2)

    def forward(self, x):
        return self.up(self.conv(x))


X = torch.randn(2, 3, 8, 8)


def config(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(f"version: 1\n{text}")
    return load_config(path)


def errors(action):
    with pytest.raises(ConfigError) as raised:
        action()
    return list(raised.value.diagnostics)


@pytest.mark.parametrize("target", PROFILES)
def test_the_page_on_export_has_the_target_with_its_grids(target):
    profile = PROFILES[target]
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{target}` |")]
    _, _, activations, weights, add, *_ = row.split("|")
    assert {dtype for dtype, _ in profile.activation} == set(re.findall(r"q\w*int\d+", activations))
    assert {dtype for dtype, _ in profile.weight} == set(re.findall(r"q\w*int\d+", weights))
    assert ("one op with it" in add) == profile.adds_to_accumulator


@pytest.mark.parametrize("target", PROFILES)
def test_what_is_adjusted_fits(target):
    profile = PROFILES[target]
    for slot in ("activation", "weight"):
        for dtype in ("qint4", "quint4", "qint8", "quint8", "qint16", "quint16"):
            for qscheme in ("per_tensor_symmetric", "per_tensor_affine", "per_channel_symmetric"):
                spec = FakeQuantSpec("fake_quant", "mse", (("dtype", dtype), ("qscheme", qscheme)))
                for op in ("conv2d", "conv_transpose2d"):
                    found = adjusted(profile, spec, slot, op)
                    assert found is not None
                    assert fits(profile, found, slot, op)
                    assert found.observer == "mse"


def test_the_nearest_grid_has_no_fewer_bits_and_the_same_granularity():
    def near(target, slot, dtype, qscheme):
        spec = FakeQuantSpec("fake_quant", "min_max", (("dtype", dtype), ("qscheme", qscheme)))
        return grid_of(adjusted(PROFILES[target], spec, slot), slot)

    assert near("horizon", "activation", "quint16", "per_tensor_affine") == ("qint16", "per_tensor_symmetric")
    assert near("horizon", "activation", "quint8", "per_tensor_affine") == ("qint8", "per_tensor_symmetric")
    assert near("qnn", "weight", "qint3", "per_channel_symmetric") == ("qint4", "per_channel_symmetric")
    assert near("tensorrt", "activation", "qint16", "per_tensor_symmetric") == (
        "qint8",
        "per_tensor_symmetric",
    )
    assert near("onnxruntime", "weight", "quint8", "per_tensor_symmetric") == (
        "qint8",
        "per_tensor_symmetric",
    )


def test_validate_refuses_with_the_line_and_without_a_model(tmp_path):
    rules = "qconfig:\n  global:\n    preset: w8a8\n    activation_qkwargs: {dtype: qint16}\n"
    text = rules + "export: {target: tensorrt}\n"
    (error,) = errors(lambda: config(tmp_path, text))
    assert (error.code, error.place.line) == ("QC132", 5)
    assert error.summary == "`tensorrt` takes no qint16 per_tensor_symmetric activations"
    assert error.label == "tensorrt takes qint8 per_tensor_symmetric"


def test_what_only_some_op_lacks_is_refused_with_the_model(tmp_path):
    taken = config(tmp_path, "qconfig: {global: w8a8}\nexport: {target: tensorrt}\n")
    (error,) = errors(lambda: prepare(Upsampler(), taken, example_inputs=(X,)))
    assert (error.code, error.place.line) == ("QC216", 2)
    assert error.summary == "`tensorrt` takes no qint8 per_channel_symmetric weights: `up`"


def test_adjusting_changes_the_op_and_the_plan_lists_it(tmp_path):
    wanted = config(tmp_path, "qconfig: {global: w8a8}\nexport: {target: tensorrt, unsupported: adjust}\n")
    plan = plan_of(prepare(Upsampler(), wanted, example_inputs=(X,)))
    schemes = {row.name: row.weight.qscheme for row in plan.rows}
    assert schemes == {"conv": "per_channel_symmetric", "up": "per_tensor_symmetric"}
    (change,) = plan.adjustments
    assert (change.op, change.slot, change.place.line) == ("up", "weight", 2)
    assert plan.to_dict()["adjustments"][0]["after"] == "qint8 per_tensor_symmetric"


def test_float_leaves_the_op_in_float_and_lists_it(tmp_path):
    wanted = config(tmp_path, "qconfig: {global: w8a8}\nexport: {target: tensorrt, unsupported: float}\n")
    plan = plan_of(prepare(Upsampler(), wanted, example_inputs=(X,)))
    assert [row.role for row in plan.rows] == ["quantized", "float"]
    assert [(change.op, change.after) for change in plan.adjustments] == [("up", "float")]
    assert plan.rows[1].reason == "left in float by export.target tensorrt"


WIDE = "qconfig:\n  global: w8a8\n  module_name: {'0': {preset: w8a8, activation_qkwargs: {dtype: qint16}}}\n"


def chain():
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))


@pytest.mark.parametrize(("unsupported", "dtypes"), [("float", set()), ("adjust", {"qint8"})])
def test_what_stands_before_an_op_that_is_left_in_float_does_not_get_its_grid(tmp_path, unsupported, dtypes):
    wanted = config(tmp_path, f"{WIDE}export: {{target: tensorrt, unsupported: {unsupported}}}\n")
    model = prepare(chain(), wanted, example_inputs=(X,))
    assert {fake_quant.dtype.name for fake_quant in fake_quants(model).values()} == dtypes


def test_a_target_that_takes_nothing_of_what_is_asked_for_is_told(tmp_path):
    text = WIDE.replace("module_name: {'0':", "module_name: {'*':")
    wanted = config(tmp_path, f"{text}export: {{target: tensorrt, unsupported: float}}\n")
    (finding,) = plan_of(prepare(chain(), wanted, example_inputs=(X,))).findings
    assert (finding.code, finding.severity, finding.place.line) == ("QC203", "warning", 4)
    assert finding.summary == "nothing of this model is quantized"


def test_every_quantizer_is_adjusted_those_of_inputs_and_tails_too(tmp_path):
    rules = "qconfig: {global: w8a8, module_name: {classifier: w8a32}}\n"
    text = rules + "export: {target: onnxruntime, unsupported: adjust}\n"
    model = prepare(ResNet(), config(tmp_path, text), example_inputs=(X,))
    activations = {m.dtype.name for name, m in fake_quants(model).items() if not name.endswith(".weight")}
    assert activations == {"quint8"}


@pytest.mark.parametrize(
    "fields",
    ["activation_observer: fixed_scale, activation_qkwargs: {scale: 0.1}", "activation_fake_quant: pact"],
)
def test_what_is_bound_to_its_grid_cannot_be_adjusted(tmp_path, fields):
    text = f"qconfig:\n  global: {{{fields}}}\nexport: {{target: onnxruntime, unsupported: adjust}}\n"
    found = errors(lambda: prepare(Upsampler(), config(tmp_path, text), example_inputs=(X,)))
    assert {error.code for error in found} == {"QC216"}


def test_a_generic_target_takes_everything(tmp_path):
    text = (
        "qconfig: {global: {preset: w8a8, activation_qkwargs: {dtype: quint3, qscheme: per_tensor_affine}}}\n"
    )
    assert not plan_of(prepare(Upsampler(), config(tmp_path, text), example_inputs=(X,))).adjustments


@pytest.mark.parametrize(("target", "fused"), [("onnxruntime", False), ("openvino", True)])
def test_a_convolution_is_one_with_its_add_only_where_the_target_says_so(tmp_path, target, fused):
    text = f"qconfig: {{global: w8a8}}\nexport: {{target: {target}, unsupported: adjust}}\n"
    model = prepare(ResNet(), config(tmp_path, text), example_inputs=(X,))
    assert ("blocks.0.conv2.output" in fake_quants(model)) is not fused
