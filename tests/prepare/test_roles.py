"""Which ops get a quantizer, by hand-written tables: what an int8 deployment of these models needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantcfg.preparation.plan import Plan
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import calibrating, fake_quants, plan_of
from quantcfg.preparation.stubs import DeQuantStub, QuantStub
from quantcfg.qconfig import get_default_qconfig
from tests.prepare.models import CASES


def plan_for(name: str, **options: Any) -> Plan:
    torch.manual_seed(0)
    make, inputs = CASES[name]
    return plan_of(prepare(make().eval(), {"": get_default_qconfig()}, example_inputs=inputs(), **options))


def roles(plan: Plan) -> dict[str, str]:
    return {row.name: row.role for row in plan.rows}


def test_residual_network() -> None:
    assert roles(plan_for("resnet")) == {
        "stem.0": "fused",
        "stem.1": "fused",
        "stem.2": "quantized",
        "blocks.0.conv1": "fused",
        "blocks.0.bn1": "fused",
        "blocks.0.relu": "quantized",
        "blocks.0.conv2": "fused",
        "blocks.0.bn2": "fused",
        "blocks.0.add_0": "fused",
        "blocks.0.relu:1": "quantized",
        "blocks.1.conv1": "fused",
        "blocks.1.bn1": "fused",
        "blocks.1.relu": "quantized",
        "blocks.1.conv2": "fused",
        "blocks.1.bn2": "fused",
        "blocks.1.add_0": "fused",
        "blocks.1.relu:1": "quantized",
        "shortcut.0": "fused",
        "shortcut.1": "fused",
        "add_0": "quantized",
        "pool": "passed through",
        "adaptive_avg_pool2d_0": "quantized",
        "flatten_0": "passed through",
        "adaptive_max_pool2d_0": "passed through",
        "flatten_1": "passed through",
        "cat_0": "quantized",
        "classifier": "quantized",
    }


def test_residual_network_has_the_quantizers_of_an_int8_deployment_and_no_other() -> None:
    make, inputs = CASES["resnet"]
    prepared = prepare(make().eval(), {"": get_default_qconfig()}, example_inputs=inputs())

    weights = {"stem.0", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "shortcut.0"}
    outputs = {"stem.2", "blocks.0.relu", "blocks.0.relu:1", "blocks.1.relu", "blocks.1.relu:1", "add_0"}
    outputs |= {"adaptive_avg_pool2d_0", "cat_0", "classifier"}
    assert set(fake_quants(prepared)) == (
        {f"{name}.weight" for name in weights | {"classifier"}}
        | {f"{name}.output" for name in outputs}
        | {"input.x"}
    )


def test_attention_with_an_added_mask() -> None:
    plan = plan_for("encoder_add")
    found = roles(plan)
    reasons = {row.name: row.reason for row in plan.rows}

    assert {name: role for name, role in found.items() if name.startswith("attention")} == {
        "attention.qkv": "quantized",
        "attention.view_0": "passed through",
        "attention.permute_0": "passed through",
        "attention.unbind_0": "passed through",
        "attention.transpose_0": "passed through",
        "attention.matmul_0": "quantized",
        "attention.div_0": "quantized",
        "attention.to_0": "float",
        "attention.rsub_0": "float",
        "attention.mul_0": "float",
        "attention.add_0": "float",
        "attention.softmax_0": "quantized",
        "attention.matmul_1": "quantized",
        "attention.transpose_1": "passed through",
        "attention.reshape_0": "passed through",
        "attention.out": "fused",
    }
    assert reasons["attention.add_0"] == (
        "carries an attention mask: on a grid, -inf would become an ordinary number"
    )


CHANNELS: dict[
    str, Any
] = {  # how a weight meets an activation [3, 8, 8]: the axis of its channels, and how many there are
    "right": (lambda x, w, t: x @ w, (1, 8)),
    "left": (lambda x, w, t: w[:5] @ x, (0, 5)),
    "left by name": (lambda x, w, t: torch.matmul(input=w[:5], other=x), (0, 5)),
    "reflected": (lambda x, w, t: x.__rmatmul__(w[:5]), (0, 5)),
    "left of a sum": (lambda x, w, t: torch.addmm(x[0], w, x[0]), (0, 8)),
    "right of a sum": (lambda x, w, t: torch.addmm(x[0], x[0], w), (1, 8)),
    "einsum right": (lambda x, w, t: torch.einsum("bnd,de->bne", x, w[:, :5]), (1, 5)),
    "einsum left": (lambda x, w, t: torch.einsum("mn,bnd->bmd", w[:5], x), (0, 5)),
    "einsum with dots": (lambda x, w, t: torch.einsum("...d,de->...e", x, w[:, :5]), (1, 5)),
    "einsum without an arrow": (lambda x, w, t: torch.einsum("bnd,dz", x, w[:, :5]), (1, 5)),
    "einsum by heads": (lambda x, w, t: torch.einsum("bnd,hde->bhne", x, t), (2, 4)),
    "einsum along": (lambda x, w, t: torch.einsum("bnd,d->bnd", x, w[0]), None),  # a vector is no weight
    "einsum over heads": (lambda x, w, t: torch.einsum("bnhe,hed->bnd", x.view(-1, 8, 2, 4), t.mT), (2, 8)),
    "einsum of all": (lambda x, w, t: torch.einsum("bnd,nd->b", x, w), (-1, 1)),  # one scale
    "einsum of a token": (
        lambda x, w, t: torch.einsum("bid,bjd->bij", w[None, :5].expand(len(x), -1, -1), x),
        (1, 5),
    ),
}


@pytest.mark.parametrize("run", CHANNELS)
def test_the_channels_of_a_weight_are_on_no_axis_that_is_summed_over(run: str) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.w, self.t = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(2, 8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return CHANNELS[run][0](self.layer(x), self.w, self.t)

    x = torch.randn(3, 8, 8)
    prepared = prepare(Product(), {"": get_default_qconfig()}, example_inputs=(x,))
    with calibrating(prepared), torch.no_grad():
        prepared(x)
        prepared(x[:2])  # no axis is that of the batch
    weights = [
        q for name, q in fake_quants(prepared).items() if ".weight" in name and not name.startswith("layer")
    ]
    assert [(q.ch_axis, q.scale.numel()) for q in weights] == ([CHANNELS[run][1]] if CHANNELS[run][1] else [])


def test_a_cast_keeps_the_grid_of_its_input() -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).double()).half().bfloat16().float()

    prepared = prepare(Casts(), {"": get_default_qconfig()}, example_inputs=(torch.randn(2, 4),))
    assert [(row.op, row.role) for row in plan_of(prepared).rows] == [
        ("linear", "quantized"), ("double", "passed through"), ("linear", "quantized"),
        ("half", "passed through"), ("bfloat16", "passed through"), ("float", "passed through"),
    ]  # fmt: skip
    assert set(fake_quants(prepared)) == {"input.x", "a.weight", "a.output", "b.weight", "b.output"}


def test_constants_and_parameters_in_arithmetic_get_a_quantizer_of_their_own() -> None:
    make, inputs = CASES["by_hand"]
    prepared = prepare(make().eval(), {"": get_default_qconfig()}, example_inputs=inputs())

    assert set(fake_quants(prepared)) == {
        "input.x", "conv2d_0.weight", "conv2d_0.output", "mean_0.output",
        "matmul_0.weight", "matmul_0.output", "add_0.input_0", "add_0.output",
    }  # fmt: skip
    assert fake_quants(prepared)["matmul_0.weight"].ch_axis == 1


def test_weights_follow_the_axis_of_their_op() -> None:
    make, inputs = CASES["transposed"]
    prepared = prepare(make().eval(), {"": get_default_qconfig()}, example_inputs=inputs())
    quantizers = fake_quants(prepared)

    assert (quantizers["up.weight"].ch_axis, tuple(quantizers["up.weight"].zero_point.shape)) == (1, (3,))
    assert (quantizers["line.weight"].ch_axis, tuple(quantizers["line.weight"].zero_point.shape)) == (1, (3,))


def test_a_recurrent_cell_is_float_with_its_reason_and_what_follows_is_not() -> None:
    plan = plan_for("lstm")
    rows = {row.name: row for row in plan.rows}

    assert rows["cell"].role == "float"
    assert rows["cell"].reason == "recurrent cell: its gates are computed in one fused float op"
    assert rows["head"].role == "quantized"


def test_nothing_inside_multi_head_attention_is_hidden() -> None:
    row = next(row for row in plan_for("torch_attention").rows if row.op == "multi_head_attention_forward")

    assert row.name == "layer.self_attn"
    assert row.role == "quantized"
    assert row.reason.endswith("all between them is in float")
    assert row.params == 3 * 8 * 8 + 8 * 8


class Stubbed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.inside, self.after = (torch.nn.Linear(4, 4) for _ in range(3))
        self.quant, self.dequant = QuantStub(), DeQuantStub()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.quant(self.before(x))
        return self.after(self.dequant(self.inside(x)))


def test_stubs_bound_the_quantized_region() -> None:
    plan = plan_of(prepare(Stubbed(), {"": get_default_qconfig()}, example_inputs=(torch.randn(2, 4),)))

    outside = "outside the region between QuantStub and DeQuantStub"
    assert {row.name: (row.role, row.reason) for row in plan.rows} == {
        "before": ("float", outside),
        "quant": ("quantized", ""),
        "inside": ("quantized", ""),
        "dequant": ("float", "end of the quantized region"),
        "after": ("float", outside),
    }


def test_a_stub_is_the_one_quantizer_of_what_it_reads() -> None:
    prepared = prepare(Stubbed(), {"": get_default_qconfig()}, example_inputs=(torch.randn(2, 4),))

    assert set(fake_quants(prepared)) == {"quant.output", "inside.weight", "inside.output"}


def test_macs_and_parameters_are_counted() -> None:
    plan = plan_for("resnet")
    rows = {row.name: row for row in plan.rows}

    assert rows["stem.0"].macs == 4 * 4 * 8 * 8 * 3 * 9  # batch, channels, pixels, input channels, kernel
    assert rows["classifier"].macs == 4 * 3 * 8
    assert rows["classifier"].params == 24
    assert plan.coverage.macs_share == 1.0
    assert plan.coverage.quantized_params == sum(row.params for row in plan.rows)


RECURRENT = {
    "LSTM": lambda: nn.LSTM(7, 11, 2, bidirectional=True),
    "projected LSTM": lambda: nn.LSTM(7, 11, proj_size=5),
    "GRU": lambda: nn.GRU(7, 11, 2),
    "RNN": lambda: nn.RNN(7, 11),
    "LSTMCell": lambda: nn.LSTMCell(7, 11),
    "GRUCell": lambda: nn.GRUCell(7, 11),
    "RNNCell": lambda: nn.RNNCell(7, 11),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_that_stays_in_float_counts_in_the_coverage(name: str) -> None:
    module = RECURRENT[name]()
    inputs = torch.randn(3, 7) if name.endswith("Cell") else torch.randn(5, 3, 7)
    coverage = plan_of(prepare(module, {"": get_default_qconfig()}, example_inputs=inputs)).coverage
    weights = sum(weight.numel() for weight in module.parameters() if weight.dim() == 2)
    assert (coverage.macs, coverage.quantized_macs) == (inputs[..., 0].numel() * weights, 0)


def test_a_tensor_joined_with_itself_stays_on_its_grid() -> None:
    class Shuffle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            low, high = self.fc(x).chunk(2, dim=1)
            return torch.cat([high, low], 1)

    plan = plan_of(prepare(Shuffle(), {"": get_default_qconfig()}, example_inputs=(torch.randn(2, 4),)))

    assert roles(plan) == {"fc": "quantized", "chunk_0": "passed through", "cat_0": "passed through"}


class DropoutInChain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.dropout = torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(self.fc(x))


def test_a_dropout_does_not_split_a_chain() -> None:
    prepared = prepare(DropoutInChain(), {"": get_default_qconfig()}, example_inputs=(torch.randn(2, 4),))

    assert roles(plan_of(prepared)) == {"fc": "fused", "dropout": "fused", "add_0": "quantized"}
    assert set(fake_quants(prepared)) == {"input.x", "fc.weight", "add_0.output"}


class Swish(torch.nn.Module):
    """Hard-swish as it was written before torch had one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        return y * F.relu6(y + 3) / 6


def test_a_number_that_is_added_before_a_relu_is_one_op_with_it() -> None:
    prepared = prepare(Swish(), {"": get_default_qconfig()}, example_inputs=(torch.randn(2, 4),))

    assert roles(plan_of(prepared)) == {
        "fc": "quantized", "add_0": "fused", "relu6_0": "quantized",
        "mul_0": "quantized", "div_0": "quantized",
    }  # fmt: skip


def test_a_rule_for_a_dropout_changes_nothing_of_its_chain() -> None:
    rules = {"": get_default_qconfig(), "module_name": {"dropout": None}}
    prepared = prepare(DropoutInChain(), rules, example_inputs=(torch.randn(2, 4),))

    assert set(fake_quants(prepared)) == {"input.x", "fc.weight", "add_0.output"}


def test_a_batch_norm_behind_a_dropout_is_not_folded() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(4))
    prepared = prepare(model, {"": get_default_qconfig()}, example_inputs=(torch.randn(2, 4),))

    assert roles(plan_of(prepared)) == {"0": "quantized", "1": "passed through", "2": "quantized"}


class HeadOfModules(torch.nn.Module):
    """A module that calls an op of its own and what is in its `ModuleList`, which itself is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self.parts], 1)


def test_the_ops_of_a_module_with_a_module_list_carry_their_own_names() -> None:
    model = torch.nn.Sequential(HeadOfModules())
    plan = plan_of(prepare(model, {"": get_default_qconfig()}, example_inputs=(torch.randn(2, 4),)))

    assert [row.name for row in plan.rows] == ["0.parts.0", "0.parts.1", "0.cat_0"]


class AsksForShapes(nn.Module):
    """A layer whose shape and dtype are read by others before its activation runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        memory = torch.zeros_like(y) + x.view(-1).view_as(y) + x.type_as(y) + x.to(y)
        return torch.relu(y) + memory


def test_who_asks_for_a_shape_or_a_dtype_reads_nothing() -> None:
    plan = plan_of(prepare(AsksForShapes(), {"": get_default_qconfig()}, example_inputs=(torch.randn(4, 8),)))
    assert roles(plan)["layer"] == "fused"
    assert not [pair for pair in plan.unfused if pair.first == "layer"]


@pytest.mark.parametrize(
    ("equation", "role"),
    [
        ("bijk->bkij", "passed through"),
        ("b...k -> bk...", "passed through"),
        ("bijj->bij", "passed through"),
        ("bijk", "passed through"),
        ("bijk->bi", "quantized"),
        ("bijj", "quantized"),
        ("b...k->bk", "quantized"),
    ],
)
def test_an_einsum_of_one_tensor_that_adds_up_nothing_moves(equation: str, role: str) -> None:
    class Patches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum(equation, torch.tanh(x))

    model, x = Patches(), torch.randn(2, 3, 4, 4)
    prepared = prepare(model, {"": get_default_qconfig()}, example_inputs=(x,))
    assert roles(plan_of(prepared))["einsum_0"] == role
    with calibrating(prepared):
        prepared(x)
    assert torch.equal(prepared(x), model(x))


class SortsInto(nn.Module):
    """Writes the rows of two layers where they belong, into memory that holds anything before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_empty(x.shape)
        for layer, rows in zip(self.layers, torch.arange(len(x)).chunk(2), strict=True):
            y.index_copy_(0, rows, layer(x[rows]))
        return self.head(y)


def test_what_is_copied_into_new_memory_is_quantized_where_all_of_it_is_there() -> None:
    prepared = prepare(SortsInto(), {"": get_default_qconfig()}, example_inputs=(torch.randn(4, 8),))
    rows = {row.name: row for row in plan_of(prepared).rows}
    reason = "its readers quantize what it writes"
    assert {rows[name].reason for name in ("index_copy_0", "index_copy_1")} == {reason}
    assert rows["head"].inputs == ("index_copy_1: qint8",)
    assert rows["layers.0"].role == rows["head"].role == "quantized"
    assert not [name for name in fake_quants(prepared) if name.startswith("index_copy")]
