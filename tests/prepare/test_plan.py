"""The plan accounts for every op: dtypes, what could have been one op, what ran twice, what never ran."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quantcfg.preparation.flow import Unfused
from quantcfg.preparation.plan import Plan
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import plan_of
from quantcfg.qconfig import get_default_qconfig
from tests.prepare.models import CASES

IMAGE = torch.randn(2, 3, 6, 6)


def plan_for(model: nn.Module, *args: Any, rules: dict[str, Any] | None = None, bn: str = "fold") -> Plan:
    rules = {"": get_default_qconfig(), **(rules or {})}
    return plan_of(prepare(model.eval(), rules, example_inputs=args, bn=bn))


class Fork(nn.Module):
    """A convolution whose result is read by its batch norm and by an add."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(self.bn(y)) + y


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bn = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.spare = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.second(self.bn(self.first(x))))


def test_dtypes_in_and_out_of_a_chain_and_of_what_passes() -> None:
    rows = {row.name: (row.dtypes_in, row.dtype_out) for row in plan_for(*_case("resnet")).rows}

    assert rows["stem.0"] == (("qint8",), "float")
    assert rows["stem.1"] == (("float",), "float")
    assert rows["stem.2"] == (("float",), "qint8")
    assert rows["blocks.0.add_0"] == (("float", "qint8"), "float")
    assert rows["pool"] == (("qint8",), "qint8")
    assert rows["cat_0"] == (("qint8", "qint8"), "qint8")
    assert rows["classifier"] == (("qint8",), "qint8")


def test_the_end_of_a_chain_with_a_batch_norm_is_on_the_grid_that_its_carrier_holds() -> None:
    rows = {row.name: row for row in plan_for(Straight(), IMAGE).rows}

    assert (rows["conv"].dtypes_in, rows["conv"].dtype_out) == (("qint8",), "qint8")
    assert rows["bn"].dtype_out == "qint8"


def test_dtypes_follow_the_rules() -> None:
    qconfig = get_default_qconfig(activation_qkwargs={"dtype": "qint16"})
    rules = {"module_name": {"blocks": qconfig, "pool": None}}
    rows = {row.name: (row.dtypes_in, row.dtype_out) for row in plan_for(*_case("resnet"), rules=rules).rows}

    assert rows["blocks.0.relu"] == (("float",), "qint16")
    assert rows["blocks.1.conv1"] == (("qint16",), "float")
    assert rows["add_0"] == (("qint16", "float"), "qint8")


def test_a_mask_and_the_scores_that_hold_it_are_float_on_both_sides() -> None:
    rows = {row.name: row for row in plan_for(*_case("encoder_add")).rows}

    assert rows["attention.add_0"].dtype_out == "float"
    assert rows["attention.softmax_0"].dtypes_in == ("float",)
    assert rows["attention.softmax_0"].dtype_out == "qint8"


def test_a_value_that_is_read_twice_ends_its_chain_and_the_plan_says_so() -> None:
    plan = plan_for(Fork(), IMAGE)

    reason = "what conv makes is read 2 times: bn, add_0"
    assert plan.unfused == (Unfused("conv", "bn", reason), Unfused("conv", "add_0", reason))
    assert plan.to_dict()["unfused"][0] == {"first": "conv", "second": "bn", "reason": reason}


def test_a_rule_that_leaves_one_half_in_float_unfuses_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    plan = plan_for(model, torch.randn(2, 4), rules={"module_name": {"3": None}})

    assert plan.unfused == (Unfused("2", "3", "3 stays in float: left in float by module_name '3'"),)


class Read(nn.Module):
    """A layer, a sum and a ReLU, which others read, too."""

    def __init__(self, read: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.read = nn.Linear(4, 4), read

    def forward(self, x: Tensor) -> Any:
        return self.read(self.layer(x), x)


@pytest.mark.parametrize(
    ("read", "pair"),
    [
        (lambda y, x: (y.relu(), y), ("layer", "relu_0", "the model returns what layer makes")),
        (lambda y, x: y.relu() * (y > 1).sum(), ("layer", "relu_0", "what layer makes is read by 'gt' too")),
        (
            lambda y, x: (z := y + x).relu() * z,
            ("add_0", "relu_0", "what add_0 makes is read 2 times: relu_0, mul_0"),
        ),
    ],
)
def test_who_else_reads_it_is_why_two_are_not_fused(
    read: Callable[[Tensor, Tensor], Any], pair: tuple[str, str, str]
) -> None:
    assert plan_for(Read(read), torch.randn(2, 4)).unfused == (Unfused(*pair),)


@pytest.mark.parametrize(
    ("read", "roles"),
    [
        (lambda y, x: F.linear(y, x).relu(), {"linear_0": "quantized", "relu_0": "passed through"}),
        (lambda y, x: (y + 3).relu(), {"layer": "quantized", "add_0": "fused", "relu_0": "quantized"}),
        (lambda y, x: sum([y]).relu(), {"layer": "fused", "relu_0": "quantized"}),
        (lambda y, x: F.dropout(y, training=False).relu(), {"layer": "fused", "dropout_0": "fused"}),
    ],
)
def test_a_layer_is_fused_with_what_a_chip_adds_to_its_accumulator(
    read: Callable[[Tensor, Tensor], Any], roles: dict[str, str]
) -> None:
    rows = {row.name: row.role for row in plan_for(Read(read), torch.randn(4, 4)).rows}

    assert {name: rows[name] for name in roles} == roles


def test_the_one_product_with_weights_of_a_module_has_its_name() -> None:
    class Activated(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(super().forward(x)).softmax(-1)

    rows = plan_for(nn.Sequential(Activated(4, 4)), torch.randn(2, 4)).rows
    assert [row.name for row in rows] == ["0", "0.gelu_0", "0.softmax_0"]


def test_a_residual_network_leaves_nothing_unfused() -> None:
    assert plan_for(*_case("resnet")).unfused == ()


def test_a_shared_batch_norm_stays_and_the_plan_says_why() -> None:
    plan = plan_for(SharedNorm(), IMAGE)
    rows = {row.name: row for row in plan.rows}

    assert rows["bn"].reason == "not folded into first: bn is called 2 times"
    assert [(pair.first, pair.second) for pair in plan.unfused] == [("first", "bn"), ("second", "bn:1")]
    assert rows["first"].activation == rows["bn"].activation
    assert plan.called_often == (("bn", 2),)
    assert plan.never_run == ("spare",)


@pytest.mark.parametrize("bn", ["keep", "freeze"])
def test_a_batch_norm_that_is_to_stay_says_whose_wish_it_was(bn: str) -> None:
    rows = {row.name: row for row in plan_for(Straight(), IMAGE, bn=bn).rows}

    assert rows["bn"].reason == f"kept behind conv: bn is {bn}"


class Straight(Fork):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


def test_a_constant_is_named_by_the_op_that_made_it() -> None:
    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.table.tanh()

    rows = {row.name: row for row in plan_for(Bias(), torch.randn(2, 4)).rows}

    assert rows["mul_0"].inputs == ("x: qint8", "tanh_0: qint8")


@pytest.mark.parametrize("name", CASES)
def test_every_plan_is_plain_data(name: str) -> None:
    plan = plan_for(*_case(name))

    data = json.loads(json.dumps(plan.to_dict()))
    assert [row["name"] for row in data["ops"]] == [row.name for row in plan.rows]
    assert all(row.dtype_out == row.activation.dtype for row in plan.rows if row.activation)


class RectifiedInput(nn.Module):
    """A float input and what a ReLU leaves of it, each read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        half = torch.relu(x)
        return half * (x + self.fc(half))


def test_a_value_with_a_quantizer_of_its_own_is_not_made_from_quantized_ones() -> None:
    rows = {row.name: row for row in plan_for(RectifiedInput(), torch.randn(2, 4)).rows}

    assert rows["relu_0"].dtypes_in == ("float",)
    assert rows["fc"].inputs == rows["mul_0"].inputs == ("relu_0: qint8",)
    assert rows["add_0"].inputs == ("x: qint8",)


def _case(name: str) -> tuple[Any, ...]:
    torch.manual_seed(0)
    make, inputs = CASES[name]
    return make(), *inputs()


class ByHand(nn.Module):
    """Weights that no call of their module brings: of two layers, one tied and turned, one in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first = nn.Embedding(5, 8), nn.Linear(8, 8)
        self.both = nn.Parameter(torch.randn(16, 8))

    def forward(self, ids: Tensor) -> Tensor:
        y = F.linear(self.words(ids), self.first.weight, self.first.bias)
        query, key = (F.linear(y, part) for part in self.both.chunk(2))
        return (query * key) @ self.words.weight.t()


def _multi_dot(*matrices: Tensor) -> Tensor:
    return torch.linalg.multi_dot(matrices)


PRODUCTS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "einsum over a middle axis": (lambda x, w: torch.einsum("bchw, c -> bhw", x, w), [(2, 3, 4, 5), (3,)]),
    "einsum with dots": (lambda x, w: torch.einsum("...i,oi->...o", x, w), [(2, 3, 4), (5, 4)]),
    "einsum over two axes": (lambda x, w: torch.einsum("bij,ijo->bo", x, w), [(2, 3, 4), (3, 4, 5)]),
    "tensordot": (lambda x, w: torch.tensordot(x, w, 2), [(2, 3, 4), (3, 4, 5)]),
    "chain": (_multi_dot, [(10, 100), (100, 5), (5, 50)]),
    "chain in another order": (_multi_dot, [(5, 6), (6, 2), (2, 7), (7, 3), (3, 4)]),
    "chain with a row and a column": (_multi_dot, [(9,), (9, 4), (4, 5), (5,)]),
    "chain_matmul": (torch.chain_matmul, [(2, 3), (3, 4), (4, 5)]),
    "baddbmm": (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
    "matmul of a stack": (torch.matmul, [(2, 3, 4), (4, 5)]),
    "transposed convolution": (F.conv_transpose2d, [(2, 4, 5, 5), (4, 6, 3, 3)]),
    "other values than keys": (F.scaled_dot_product_attention, [(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6)]),
    "cross attention": (nn.MultiheadAttention(8, 2), [(3, 2, 8), (5, 2, 8), (5, 2, 8)]),
    "three weights": (nn.MultiheadAttention(8, 2, kdim=6, vdim=4), [(3, 2, 8), (5, 2, 6), (5, 2, 4)]),
}


class Product(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


@pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated")
@pytest.mark.parametrize("name", PRODUCTS)
def test_multiply_accumulates_are_those_that_torch_counts(name: str) -> None:
    function, shapes = PRODUCTS[name]
    model, args = Product(function), [torch.randn(shape) for shape in shapes]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(*args)

    assert 2 * plan_for(model, *args).coverage.macs == counter.get_total_flops()


def test_multiply_accumulates_of_what_torch_does_not_count() -> None:
    pairs = plan_for(nn.Bilinear(3, 4, 5), torch.randn(2, 3), torch.randn(2, 4))
    sums = plan_for(Product(torch.addbmm), torch.randn(3, 5), torch.randn(2, 3, 4), torch.randn(2, 4, 5))

    assert pairs.coverage.macs == sums.coverage.macs == 2 * 3 * 4 * 5
    assert plan_for(nn.Embedding(5, 8), torch.arange(4)).coverage.macs == 0


def test_an_einsum_whose_axes_are_numbers_counts_as_a_product() -> None:
    product = Product(lambda x, w: torch.einsum(x, [0, 1], w, [1, 2], [0, 2]))
    assert plan_for(product, torch.randn(2, 3), torch.randn(3, 4)).coverage.macs == 2 * 3 * 4


def test_each_weight_is_counted_once_whoever_reads_it_and_in_how_many_parts() -> None:
    plan = plan_for(ByHand(), torch.arange(4))

    assert plan.coverage.quantized_params == 5 * 8 + 8 * 8 + 16 * 8
    assert plan.coverage.size_bytes == plan.coverage.quantized_params + 4 * 8  # and the bias in float


def test_a_module_whose_weight_is_read_does_run() -> None:
    assert plan_for(ByHand(), torch.arange(4)).never_run == ()


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).abs() * x


def test_what_comes_back_from_complex_numbers_is_no_constant() -> None:
    rows = {row.name: (row.role, row.inputs) for row in plan_for(Spectrum(), torch.randn(2, 4)).rows}

    assert rows == {"abs_0": ("quantized", ()), "mul_0": ("quantized", ("x: qint8",))}
