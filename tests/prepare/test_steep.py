"""What is steep at 0: inverses, roots and logarithms of what is rounded to 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import (
    FakeQuantState,
    calibrating,
    fake_quants,
    plan_of,
    set_fake_quantize,
)
from quantcfg.qconfig import get_default_qconfig

GLOBAL = {"": get_default_qconfig()}
LEARNED = {"": get_default_qconfig("lsq", "lsq")}
DIVISOR = "is divided by: rounded to 0 it would make the quotient infinite"
ROOT = "only its root counts: rounded before, what is small would be lost"
LOGARITHM = "only its logarithm counts: rounded before, what is small would be lost"

Way = Callable[["Layers", Tensor], Tensor]


class Layers(nn.Module):
    """Something that is made of two layers, before a third one."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.way(self, x))


def _linear_attention(m: Layers, x: Tensor) -> Tensor:
    queries, keys = m.a(x).exp(), m.b(x).exp()
    scale = 1.0 / torch.einsum("nd,d->n", queries, keys.sum(0))
    return torch.einsum("nd,de,n->ne", queries, keys.T @ x, scale)


def _normalization(m: Layers, x: Tensor) -> Tensor:
    return x * torch.rsqrt(F.linear(x**2, m.a.weight.abs()) + 1e-6)


def _deviation(m: Layers, x: Tensor) -> Tensor:
    weights = m.a(x).softmax(0)
    variance = (weights * (x - (weights * x).sum(0)) ** 2).sum(0, keepdim=True)
    return torch.sqrt(variance.clamp(min=1e-9))


WAYS: dict[str, tuple[Way, dict[str, str]]] = {
    "logarithm": (lambda m, x: torch.log(F.relu(m.a(x)) + 1e-6), {"add_0": LOGARITHM}),
    "logarithm of an input": (lambda m, x: torch.log(x.abs() + 1e-6), {"abs_0": LOGARITHM}),
    "logarithm of parts": (
        lambda m, x: torch.log(torch.where(x > 0, m.a(x).exp(), m.b(x).exp())),
        {"exp_0": LOGARITHM, "exp_1": LOGARITHM},
    ),
    "root": (lambda m, x: torch.sqrt(F.relu(m.a(x))), {}),
    "length": (
        lambda m, x: torch.sqrt((y := m.a(x)) * y + (z := m.b(x)) * z),
        {"mul_0": ROOT, "mul_1": ROOT},
    ),
    "power": (lambda m, x: (F.softplus(m.a(x)) + 1e-6) ** 0.5, {"softplus_0": ROOT, "add_0": ROOT}),
    "inverse power": (lambda m, x: x * m.a(x).exp().sum(-1, True).pow(-1), {"exp_0": DIVISOR}),
    "deviation": (_deviation, {"mul_1": ROOT, "sum_1": ROOT}),
    "sum": (
        lambda m, x: x / (m.a(x).exp() * m.b(x).exp()).sum(-1)[:, None],
        {"mul_0": DIVISOR, "sum_0": DIVISOR},
    ),
    "small number": (lambda m, x: x / (F.softplus(m.a(x)) + 1e-3), {"softplus_0": DIVISOR, "add_0": DIVISOR}),
    "normalization": (_normalization, {"add_0": DIVISOR}),
    "linear attention": (_linear_attention, {}),
}  # fmt: skip
LAYERS = {
    "logarithm": {"a": "fused into relu_0", "relu_0": f"32-bit output: {LOGARITHM}"},
    "root": {"relu_0": f"32-bit output: {ROOT}"},
    "normalization": {"linear_0": f"32-bit output: {DIVISOR}"},
    "linear attention": {"einsum_0": f"32-bit output: {DIVISOR}"},
}


def rows_of(way: str) -> dict[str, tuple[str, str]]:
    torch.manual_seed(0)
    prepared = prepare(Layers(WAYS[way][0]), GLOBAL, example_inputs=torch.randn(4, 8))
    return {row.name: (row.role, row.reason) for row in plan_of(prepared).rows}


@pytest.mark.parametrize("way", WAYS)
def test_before_it_nothing_is_rounded(way: str) -> None:
    rows = rows_of(way)
    for name, reason in WAYS[way][1].items():
        assert rows[name] == ("float", reason)


@pytest.mark.parametrize("way", LAYERS)
def test_a_layer_before_it_is_quantized_and_gives_32_bits(way: str) -> None:
    rows = rows_of(way)
    for name, reason in LAYERS[way].items():
        assert rows[name] == ("fused" if reason.startswith("fused") else "quantized", reason)


class Result(Layers):
    """What is made of the first layer alone, handed out."""

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)


def role_of(op: str, model: nn.Module) -> str:
    rows = plan_of(prepare(model, GLOBAL, example_inputs=torch.randn(4, 8))).rows
    return next(row.role for row in rows if row.name == op)


ROWS = torch.tensor([0, 1, 1, 2])
CARRIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "moved": lambda y: y.t(),
    "clipped": lambda y: y.clamp(min=1e-5),
    "add": lambda y: y + y.t()[0, 0],
    "sum": lambda y: y.sum(-1),
    "mean": lambda y: y.mean(-1),
    "div": lambda y: y / 7,
    "mul": lambda y: y * 0.1,
    "sub": lambda y: y - 1e-5,
    "rsub": lambda y: 1e5 - y,
    "maximum": lambda y: torch.maximum(y, torch.tensor(1e-5)),
    "minimum": lambda y: torch.minimum(y, torch.tensor(1e5)),
    "where": lambda y: torch.where(y > 1, y, 1.0),
    "cat": lambda y: torch.cat([y, y]),
    "stack": lambda y: torch.stack([y, y]),
    "index_add": lambda y: torch.ones(4, 8).index_add(0, ROWS, y),
    "scatter_add": lambda y: torch.ones(4, 8).scatter_add(0, ROWS[:, None].expand(4, 8), y),
    "scatter_reduce": lambda y: torch.ones(4, 8).scatter_reduce(0, ROWS[:, None].expand(4, 8), y, "amax"),
}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_nothing_is_rounded_before_what_is_moved_added_up_or_scaled(carrier: str) -> None:
    model = Result(lambda m, x: CARRIERS[carrier](m.a(x).exp()).log())
    assert role_of("exp_0", model) == "float"


@pytest.mark.parametrize("steep", [torch.log, torch.log2, torch.log10, torch.sqrt, torch.rsqrt, torch.logit])
def test_each_steep_function_wants_what_is_before_it_unrounded(steep: Callable[[Tensor], Tensor]) -> None:
    assert role_of("sigmoid_0", Result(lambda m, x: steep(m.a(x).sigmoid()))) == "float"


@pytest.mark.parametrize(
    "way",
    [
        lambda m, x: m.a(x).exp() ** 2,
        lambda m, x: m.a(x).exp() ** 1,
        lambda m, x: m.a(x).exp() / (x.abs() + 1),  # divided, and no divisor
        lambda m, x: ((y := m.a(x).exp() + 1).log(), y),  # handed out, too
        lambda m, x: (y := m.a(x).exp()).log() + F.layer_norm(x, (8,), None, y[0]),  # a bias, too
        lambda m, x: torch.sqrt((y := m.a(x).exp()) + 1e-6) + y,
    ],
)
def test_what_is_read_otherwise_too_is_on_a_grid(way: Way) -> None:
    assert role_of("exp_0", Result(way)) == "quantized"


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_learned_scales_are_finite(way: str) -> None:
    """Of values that lie many orders of magnitude apart, most of which a grid would round to 0."""
    torch.manual_seed(0)
    model, x = Layers(WAYS[way][0]).eval(), torch.randn(64, 8)
    model.a.weight.data *= 4
    expected = model(x)
    prepared = prepare(model, LEARNED, example_inputs=x, stage="qat")
    with calibrating(prepared):
        prepared(x)

    set_fake_quantize(prepared, FakeQuantState.QAT)
    prepared.train()(x).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in prepared.parameters())
    assert torch.cosine_similarity(prepared(x).flatten(), expected.flatten(), dim=0) > 0.95
    assert "last.weight" in fake_quants(prepared)
