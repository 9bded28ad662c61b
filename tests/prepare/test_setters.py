"""Setters and templates: who decides what the rules leave open, and what a template changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantcfg as qc
from quantcfg.errors import PrepareError
from quantcfg.preparation.plan import OpRow
from tests.prepare.models import Encoder, ResNet

INT8 = qc.get_default_qconfig()
INT16 = qc.get_default_qconfig(activation_qkwargs={"dtype": "qint16"})
IMAGE = torch.randn(2, 3, 8, 8)
TABLE = [
    ["blocks.0.conv1", "weight", "Conv2d", 9.0, "qint8"],
    ["blocks.0.relu", "activation", "ReLU", 8.0, "qint8"],
    ["cat_0", "activation", "cat", 7.0, "qint16"],
    ["stem.2", "activation", "ReLU", 6.0, "qint8"],
    ["blocks.1.relu", "activation", "ReLU", 5.0, "qint8"],
]


def rows(model: nn.Module, qconfig_dict: dict[str, Any], inputs: Any, **options: Any) -> dict[str, OpRow]:
    prepared = qc.prepare_qat_fx(model.eval(), qconfig_dict, example_inputs=inputs, **options)
    return {row.name: row for row in qc.plan_of(prepared).rows}


def dtype(row: OpRow) -> str | None:
    return row.activation.dtype if row.activation else None


def test_the_first_writer_wins_and_rules_come_before_setters() -> None:
    setters = (
        qc.TemplateQconfigSetter(INT8),
        qc.ModuleNameQconfigSetter({"blocks": INT16, "stem": None}),
        qc.ModuleNameQconfigSetter({"blocks.0": INT8, "pool": INT16}),
    )
    found = rows(ResNet(), {"module_type": {nn.Linear: INT16}}, (IMAGE,), qconfig_setter=setters)

    assert dtype(found["classifier"]) == "qint16"  # the dict, though a name setter could have had it
    assert dtype(found["blocks.0.relu"]) == "qint16"  # the first name setter
    assert found["stem.0"].role == "float"  # None is a decision
    assert dtype(found["cat_0"]) == "qint8"  # the template setter, although it stands first


@pytest.mark.parametrize(
    ("cut", "chosen"), [({"topk": 2}, {"blocks.0.relu", "stem.2"}), ({"ratio": 0.3}, {"blocks.0.relu"})]
)
def test_sensitive_ops_are_filtered_before_they_are_cut(cut: dict[str, Any], chosen: set[str]) -> None:
    setter = qc.get_sensitive_op_qconfig_setter("activation", "qint8", INT16, TABLE, **cut)

    assert set(setter.qconfigs) == chosen


def test_a_name_that_matches_nothing_is_skipped_with_a_warning() -> None:
    setter = qc.ModuleNameQconfigSetter({"blocks.3": INT16, "clasifier": INT16, "stem": INT16})
    with pytest.warns(qc.QuantcfgWarning) as caught:
        found = rows(ResNet(), {"": INT8}, (IMAGE,), qconfig_setter=setter)

    assert [str(warning.message) for warning in caught] == [
        "names of a ModuleNameQconfigSetter match nothing and are skipped: "
        "'blocks.3' (did you mean 'blocks.0'?), 'clasifier' (did you mean 'classifier'?)"
    ]
    assert dtype(found["classifier"]) == "qint8"


def test_an_op_with_several_rows_counts_once() -> None:
    table = [["stem.2", "activation"], ["stem.2", "activation"], ["cat_0", "activation"]]
    for cut in ({"topk": 2}, {"ratio": 0.6}):
        setter = qc.get_sensitive_op_qconfig_setter("activation", None, INT16, table, **cut)
        assert list(setter.qconfigs) == ["stem.2", "cat_0"]


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({}, "give exactly one of 'topk' and 'ratio'"),
        ({"topk": 1, "ratio": 0.5}, "give exactly one of 'topk' and 'ratio'"),
        ({"topk": 0}, "'topk' must be above 0 (got 0)"),
        ({"ratio": 1.5}, "'ratio' must be in (0, 1] (got 1.5)"),
    ],
)
def test_a_cut_that_means_nothing_is_refused(cut: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        qc.get_sensitive_op_qconfig_setter("weight", None, INT16, TABLE, **cut)
    assert str(caught.value) == message


def test_the_default_setter_leaves_the_last_layer_in_32_bits() -> None:
    found = rows(ResNet(), {}, (IMAGE,), qconfig_setter=qc.default_qat_qconfig_setter)

    assert found["classifier"].activation is None
    assert found["classifier"].weight is not None
    assert dtype(found["cat_0"]) == "qint8"


def encoder_inputs() -> tuple[Tensor, Tensor]:
    return torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5)


def test_what_a_layer_with_32_bits_out_reads_is_quantized_without_a_global_rule() -> None:
    prepared = qc.prepare_qat_fx(
        nn.Sequential(nn.Linear(4, 2)),
        example_inputs=torch.ones(2, 4),
        qconfig_setter=qc.default_qat_fixed_act_qconfig_setter,
    )
    assert list(qc.fake_quants(prepared)) == ["input.input", "0.weight"]


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + x.sigmoid())


@pytest.mark.parametrize("behind", [nn.Softmax(-1), nn.GELU(), nn.BatchNorm1d(4), Sum()])
def test_what_reads_32_bits_and_makes_32_bits_computes_in_float(behind: nn.Module) -> None:
    head = nn.Sequential(nn.Linear(8, 4), behind)
    rules = {"": INT8, "module_name": {"1": qc.preset_qconfig("w8a32")}}
    prepared = qc.prepare(
        nn.Sequential(nn.Linear(4, 8), head, nn.Linear(4, 2)), rules, example_inputs=torch.ones(2, 4)
    )
    names = ["input.input", "0.weight", "0.output", "1.0.weight", "2.weight", "2.output"]
    assert [name for name in qc.fake_quants(prepared) if ".input_" not in name] == names
    assert [name for name in qc.fake_quants(prepared) if ".input_" in name] == ["2.input_0"]
    floats = [row for row in qc.plan_of(prepared).rows if row.role == "float"]
    assert {row.reason for row in floats} <= {"no activation fake quant in custom"}
    assert {dtype for row in floats for dtype in (*row.dtypes_in, row.dtype_out)} <= {"float"}


def test_softmax_and_layer_norm_templates_widen_the_way_back_to_the_matrix_product() -> None:
    setter = qc.TemplateQconfigSetter(INT8, ("softmax_int16", "layer_norm_int16"))
    found = rows(Encoder("masked_fill"), {}, encoder_inputs(), qconfig_setter=setter)

    assert dtype(found["attention.matmul_0"]) == "qint16"
    assert dtype(found["attention.div_0"]) == "qint16"
    assert dtype(found["attention.qkv"]) == "qint8"
    assert dtype(found["add_0"]) == "qint16"  # what norm1 reads


KL = qc.get_default_qconfig(activation_observer="kl", activation_qkwargs={"bins": 1024})
NARROW = qc.get_default_qconfig(activation_qkwargs={"quant_min": -127, "quant_max": 127})


@pytest.mark.parametrize(
    ("qconfig", "observer", "bounds"),
    [
        (KL, "MSEObserver", (-(2**15), 2**15 - 1)),  # kl has too few bins for 16 bits
        (NARROW, "MinMaxObserver", (-(2**15), 2**15 - 1)),
    ],
)
def test_a_template_that_widens_drops_what_the_wide_grid_does_not_have(
    qconfig: qc.QConfig, observer: str, bounds: tuple[int, int]
) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), torch.ones(2, 4)
    prepared = qc.prepare(model, {"": qconfig}, example_inputs=x, templates=("softmax_int16",))

    scores = qc.fake_quants(prepared)["0.output"]
    assert (type(scores.observer).__name__, scores.quant_min, scores.quant_max) == (observer, *bounds)


class Head(nn.Module):
    """A layer, and what a test makes of what it gives."""

    def __init__(self, read: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.read = nn.Linear(4, 4), read

    def forward(self, x: Tensor) -> Any:
        return self.read(self.layer(x))


@pytest.mark.parametrize(
    ("read", "op", "is_last"),
    [
        (lambda y: y.reshape(4, 2).t(), "layer", True),
        (lambda y: y.reshape(4, 2).sigmoid(), "layer", False),
        (lambda y: (y, y.reshape(4, 2).sigmoid()), "layer", False),
        (lambda y: y @ y.t(), "matmul_0", False),  # no layer
    ],
)
def test_the_last_layer_is_the_one_that_nothing_reads(
    read: Callable[[Tensor], Any], op: str, *, is_last: bool
) -> None:
    x = torch.ones(2, 4)
    prepared = qc.prepare(Head(read), {"": INT8}, example_inputs=x, templates=("high_precision_output",))

    assert (f"{op}.output" not in qc.fake_quants(prepared)) is is_last


def test_a_stub_reads_nothing_of_the_last_layer() -> None:
    model = nn.Sequential(qc.QuantStub(), nn.Linear(4, 4), qc.DeQuantStub())
    templates = ("high_precision_output",)
    prepared = qc.prepare(model, {"": INT8}, example_inputs=torch.ones(2, 4), templates=templates)

    assert list(qc.fake_quants(prepared)) == ["0.output", "1.weight"]


@pytest.mark.parametrize(
    ("read", "wide"),
    [
        (lambda y: y.sigmoid().softmax(-1), {"layer", "sigmoid_0"}),
        (lambda y: (y.sigmoid() @ y.t()).softmax(-1), {"matmul_0"}),  # what is before a product stays
        (lambda y: (y.sigmoid() + y).softmax(-1), {"add_0"}),  # and what is before a sum
    ],
)
def test_a_template_widens_back_to_a_product_or_a_fork(read: Callable[[Tensor], Any], wide: set[str]) -> None:
    prepared = qc.prepare(
        Head(read), {"": INT8}, example_inputs=torch.ones(2, 4), templates=("softmax_int16",)
    )
    found = {row.name for row in qc.plan_of(prepared).rows if dtype(row) == "qint16"}

    assert found == wide


def test_what_two_templates_would_widen_is_widened_once() -> None:
    head = Head(lambda y: (y.softmax(-1), F.layer_norm(y, (4,))))
    templates = ("softmax_int16", "layer_norm_int16")
    prepared = qc.prepare(head, {"": INT8}, example_inputs=torch.ones(2, 4), templates=templates)

    (row,) = (row for row in qc.plan_of(prepared).rows if row.name == "layer")
    assert (row.qconfig.count("int16"), dtype(row)) == (1, "qint16")


def test_a_template_that_widens_leaves_32_bits_alone() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), torch.ones(2, 4)
    rules = {"": qc.preset_qconfig("w8a32")}
    prepared = qc.prepare(model, rules, example_inputs=x, templates=("softmax_int16",))

    assert list(qc.fake_quants(prepared)) == ["0.weight"]


def test_the_grid_of_a_grid_sample_is_widened_and_not_the_image() -> None:
    class Warp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offsets, self.image = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            grid = self.offsets(x).permute(0, 2, 3, 1)
            return F.grid_sample(self.image(x), grid, align_corners=False)

    setter = qc.TemplateQconfigSetter(INT8, ("grid_sample_int16",))
    found = rows(Warp(), {}, (IMAGE,), qconfig_setter=setter)

    assert (dtype(found["offsets"]), dtype(found["image"])) == ("qint16", "qint8")


def test_a_grid_of_places_that_is_widened_is_not_left_in_float() -> None:
    class Shift(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            columns = torch.arange(x.shape[-1]).float()
            return F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1) + columns[:, None] / 32, align_corners=False)

    setter = qc.TemplateQconfigSetter(INT8, ("grid_sample_int16",))
    assert rows(Shift(), {}, (IMAGE,))["add_0"].role == "float"
    assert dtype(rows(Shift(), {}, (IMAGE,), qconfig_setter=setter)["add_0"]) == "qint16"


def test_a_template_never_changes_what_the_user_named() -> None:
    named = {"": INT8, "module_name": {"classifier": INT16}}
    prepared = qc.prepare(
        ResNet().eval(), named, example_inputs=(IMAGE,), templates=["high_precision_output"]
    )

    assert dtype({row.name: row for row in qc.plan_of(prepared).rows}["classifier"]) == "qint16"


def test_an_unknown_template_lists_those_there_are() -> None:
    with pytest.raises(PrepareError) as caught:
        qc.prepare(ResNet(), {"": INT8}, example_inputs=(IMAGE,), templates=["softmax"])
    assert caught.value.message == (
        "unknown template 'softmax'; known: high_precision_output, softmax_int16, layer_norm_int16, "
        "grid_sample_int16"
    )
