"""Small differences of large numbers before a root or a division, and matrices that are decomposed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, plan_of, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig

GLOBAL = {"": get_default_qconfig()}
REASON = "part of a small difference of large numbers, of which the root, the inverse or the least is taken"
Way = Callable[[Tensor, Tensor], Tensor]


def _weighted(y: Tensor, weights: Tensor) -> Tensor:
    """The statistics pooling of speaker recognition."""
    mean = (weights * y).sum(1)
    deviation = ((weights * y**2).sum(1) - mean**2).clamp(min=1e-5).sqrt()
    return torch.cat([mean, deviation], -1)


def _normalized(y: Tensor, weights: Tensor) -> Tensor:
    mean = y.mean(-1, keepdim=True)
    return ((y - mean) / ((y * y).mean(-1, keepdim=True) - mean.square() + 1e-5).sqrt()).mean(1)


def _guided(y: Tensor, weights: Tensor) -> Tensor:
    mean = y.mean(1)
    return (y * weights).sum(1) / ((y * y).mean(1) - mean * mean + 1e-3)


def _neighbours(y: Tensor, weights: Tensor) -> Tensor:
    """One of the ways in which nodes of a graph may be pooled."""
    batch, nodes, width = y.shape
    groups = torch.arange(nodes).remainder(2)[None, :, None].expand_as(y)
    mean = y.new_zeros(batch, 2, width).scatter_reduce(1, groups, y, "mean", include_self=False)
    squares = y.new_zeros(batch, 2, width).scatter_reduce(1, groups, y * y, "mean", include_self=False)
    return torch.sqrt(torch.relu(squares - mean * mean) + 1e-5).flatten(1)


WAYS: dict[str, Way] = {
    "weighted": _weighted,
    "neighbours": _neighbours,
    "deviation": lambda y, weights: (y.pow(2).mean(1) - y.mean(1).pow(2) + 1e-5) ** 0.5,
    "layer norm": _normalized,
    "guided filter": _guided,
}


class Pooled(nn.Module):
    """Numbers far from 0, of which the deviations count."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way
        self.first, self.weights, self.last = nn.Linear(16, 8), nn.Linear(16, 8), nn.LazyLinear(8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.way(torch.relu(self.first(x) + 3), self.weights(x).softmax(1)))


def quantized(model: nn.Module, x: Tensor) -> tuple[nn.Module, float]:
    """The model in 8 bits, and the cosine of how samples differ from their mean to the same in float."""
    expected = model(x)
    prepared = prepare(model, GLOBAL, example_inputs=x)
    with calibrating(prepared):
        prepared(x)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    off, wanted = prepared(x) - expected.mean(0), expected - expected.mean(0)
    return prepared, torch.cosine_similarity(off.flatten(), wanted.flatten(), dim=0).item()


@pytest.mark.parametrize("way", WAYS)
def test_a_variance_that_is_written_out_stays_float(way: str) -> None:
    torch.manual_seed(0)
    model, x = Pooled(WAYS[way]), 1.5 * torch.randn(16, 20, 16) * torch.rand(16, 1, 16)
    prepared, similarity = quantized(model, x)
    assert similarity > 0.98
    assert {"relu_0.output", "last.weight"} <= set(fake_quants(prepared))


def test_what_others_read_of_it_is_on_a_grid_there() -> None:
    model, x = Pooled(_normalized), torch.randn(4, 5, 16)
    model(x)
    prepared = prepare(model, GLOBAL, example_inputs=x)

    rows = {row.name: (row.role, row.reason) for row in plan_of(prepared).rows}
    assert rows["mean_0"] == rows["mul_0"] == rows["square_0"] == rows["sub_1"] == ("float", REASON)
    assert rows["sub_0"] == rows["div_0"] == ("quantized", "")
    assert "sub_0.input_0" in fake_quants(prepared)


MATRICES: dict[str, Callable[[Tensor], Tensor]] = {
    "whitening": lambda y: (
        torch.linalg.solve_triangular(
            torch.linalg.cholesky((y - y.mean(0)).T @ (y - y.mean(0)) / len(y) + 1e-3 * torch.eye(8)),
            y.T,
            upper=False,
        ).T
    ),
    "ridge regression": lambda y: y @ torch.linalg.solve(y.T @ y + 1e-3 * torch.eye(8), y.T @ y.sin()),
    "a kernel": lambda y: (
        torch.linalg.cholesky((-torch.cdist(y, y) / 4).exp() + 1e-3 * torch.eye(len(y))) @ y
    ),
}


@pytest.mark.parametrize("way", MATRICES)
def test_a_matrix_that_is_decomposed_stays_float(way: str) -> None:
    torch.manual_seed(0)
    model, x = Pooled(lambda y, weights: MATRICES[way](y)), torch.randn(64, 16)
    expected = model(x)
    prepared = prepare(model, GLOBAL, example_inputs=x)
    with calibrating(prepared):
        prepared(x)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    assert torch.cosine_similarity(prepared(x).flatten(), expected.flatten(), dim=0) > 0.98
    reasons = [row.reason for row in plan_of(prepared).rows]
    assert "part of a matrix that is decomposed or inverted: on a grid it may be singular" in reasons
    assert {"relu_0.output", "last.weight"} <= set(fake_quants(prepared))


def test_the_sum_that_is_normalized_is_quantized() -> None:
    model, x = Pooled(lambda y, weights: _normalized(y + weights, weights)), torch.randn(4, 5, 16)
    model(x)

    rows = {row.name: row.role for row in plan_of(prepare(model, GLOBAL, example_inputs=x)).rows}
    assert (rows["add_1"], rows["mul_0"], rows["mean_0"]) == ("quantized", "float", "float")


def test_distances_of_which_the_least_is_looked_for_stay_float() -> None:
    codes = torch.randn(16, 8)

    def nearest(y: Tensor, weights: Tensor) -> Tensor:
        distances = y.pow(2).sum(1, keepdim=True) + codes.pow(2).sum(1) - 2 * y @ codes.T
        return codes[distances.argmin(1)] + weights

    model, x = Pooled(nearest), torch.randn(64, 16)
    model(x)
    rows = {
        row.name: (row.role, row.reason) for row in plan_of(prepare(model, GLOBAL, example_inputs=x)).rows
    }
    assert rows["sub_0"] == ("float", REASON)
    assert rows["matmul_0"][0] == "quantized"


Pairs = Callable[[Tensor, Tensor], Tensor]


def _squares(y: Tensor) -> Tensor:
    return y.pow(2).sum(-1)


PAIRS: dict[str, Pairs] = {
    "less the double": lambda y, z: _squares(y)[:, None] + _squares(z) - 2 * y @ z.T,
    "the double in between": lambda y, z: (y * y).sum(1, keepdim=True) - 2 * (y @ z.T) + (z * z).sum(1),
    "the double first": lambda y, z: torch.matmul(y, z.T) * -2 + _squares(z) + _squares(y)[:, None],
}
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "root": lambda squares: (squares.clamp(min=0) + 1e-6).sqrt(),
    "exponential": lambda squares: (-squares / 8).exp(),
    "inverse": lambda squares: 1 / (1 + squares),
}


class Distances(nn.Module):
    """How far numbers far from 0 are from each other, or from centers, between two layers."""

    def __init__(self, pairs: Pairs, end: Callable[[Tensor], Tensor], *, has_centers: bool) -> None:
        super().__init__()
        self.pairs, self.end = pairs, end
        self.first, self.last = nn.Linear(16, 8), nn.Linear(32, 8)
        self.centers = nn.Parameter(3 + torch.randn(32, 8)) if has_centers else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x) + 3)
        return self.last(self.end(self.pairs(y, y if self.centers is None else self.centers)))


@pytest.mark.parametrize("has_centers", [True, False])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("pairs", PAIRS)
def test_a_distance_that_is_written_out_stays_float(pairs: str, end: str, has_centers: bool) -> None:
    torch.manual_seed(0)
    model, x = Distances(PAIRS[pairs], ENDS[end], has_centers=has_centers).eval(), torch.randn(32, 16)
    prepared, similarity = quantized(model, x)
    assert similarity > 0.995
    assert {"first.weight", "last.weight"} <= set(fake_quants(prepared))
    assert not any(name.startswith(("matmul", "mul", "pow", "sub", "sum")) for name in fake_quants(prepared))


def _with_variance(read: Callable[[Tensor, Tensor], Tensor]) -> Way:
    return lambda y, weights: read((y * y).mean(1) - (mean := y.mean(1)) * mean, weights.mean(1))


CODES = torch.randn(16, 8)


def _with_distances(read: Callable[[Tensor], Tensor]) -> Way:
    def way(y: Tensor, weights: Tensor) -> Tensor:
        distances = y.pow(2).sum(2, keepdim=True) + CODES.pow(2).sum(1) - 2 * y @ CODES.T
        return CODES[distances.argmin(2)] + weights * read(distances)

    return way


@pytest.mark.parametrize(
    "way",
    [
        lambda y, weights: ((y - weights) ** 2).mean(1),
        _with_variance(lambda variance, weights: (variance * weights).sqrt()),
        _with_variance(lambda variance, weights: variance.sigmoid().sqrt()),
        _with_variance(lambda variance, weights: variance.sqrt() + variance),
        _with_variance(lambda variance, weights: variance**2),
        _with_variance(lambda variance, weights: variance / (weights + 1)),
        _with_variance(lambda variance, weights: weights + variance),
        _with_distances(lambda distances: (distances > 3).any()),
        _with_distances(lambda distances: distances.mean(2, keepdim=True)),
    ],
)
def test_a_difference_of_which_more_is_made_is_quantized(way: Way) -> None:
    model, x = Pooled(way), torch.randn(4, 5, 16)
    model(x)

    rows = {row.name: row.role for row in plan_of(prepare(model, GLOBAL, example_inputs=x)).rows}
    assert rows["sub_0"] == rows.get("mean_1", "quantized") == "quantized"


def test_a_sum_of_squares_is_no_small_difference() -> None:
    model = Pooled(lambda y, weights: (y.pow(2).mean(1) + y.mean(1).pow(2)).sqrt())
    x = torch.randn(4, 5, 16)
    model(x)

    assert all(row.reason != REASON for row in plan_of(prepare(model, GLOBAL, example_inputs=x)).rows)


@pytest.mark.parametrize(
    ("pairs", "op"),
    [
        (lambda y, z: _squares(y * 0.5)[:, None] + _squares(z) - y @ z.T, "mul_0"),  # squared alone
        (lambda y, z: _squares(s := y + y.flip(0))[:, None] + _squares(z) - 2 * s @ z.T, "add_1"),
    ],
)
def test_what_a_distance_is_taken_of_is_quantized(pairs: Pairs, op: str) -> None:
    model, x = Distances(pairs, ENDS["root"], has_centers=True), torch.randn(32, 16)
    rows = {
        row.name: (row.role, row.reason) for row in plan_of(prepare(model, GLOBAL, example_inputs=x)).rows
    }

    assert rows[op] == ("quantized", "")
    assert (
        "float",
        "part of a distance written out as squares less a product: a small difference of large numbers",
    ) in rows.values()


def test_what_weights_and_kernels_are_made_of_is_quantized() -> None:
    def way(y: Tensor, weights: Tensor) -> Tensor:
        kernel = torch.linalg.cholesky((-torch.cdist(y, y) / 4).exp() + 1e-3 * torch.eye(5))
        return _weighted(kernel @ y, (y / 3).softmax(1))

    model, x = Pooled(way), torch.randn(4, 5, 16)
    model(x)

    rows = {row.name: row.role for row in plan_of(prepare(model, GLOBAL, example_inputs=x)).rows}
    assert rows["div_0"] == rows["div_1"] == "quantized"  # the distances and the scores
    assert rows["exp_0"] == rows["softmax_1"] == "float"


def test_an_activation_that_is_a_matrix_is_quantized() -> None:
    model = Pooled(lambda y, weights: torch.linalg.inv(y[:8] + 10 * torch.eye(8)))
    x = torch.randn(16, 16)
    model(x)

    rows = {row.name: row.role for row in plan_of(prepare(model, GLOBAL, example_inputs=x)).rows}
    assert (rows["relu_0"], rows["add_1"]) == ("quantized", "float")
