"""Masked positions stay masked, and the mask never reaches a range."""

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
from tests.prepare.models import Encoder

WAYS = ("sdpa", "add", "where", "where_min", "masked_fill")


def inputs(*, padded: bool) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 20, (4, 12), generator=torch.Generator().manual_seed(0))
    keep = torch.ones_like(ids)
    if padded:
        keep[1, 5:] = 0
        keep[3, 2:] = 0
    return ids, keep


def calibrated(how: str, *, example_padded: bool) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Encoder(how, width=32).eval()
    example = inputs(padded=example_padded)
    prepared = prepare(model, {"": get_default_qconfig()}, example_inputs=example)
    with calibrating(prepared):
        prepared(*inputs(padded=True))
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    return model, prepared


@pytest.mark.parametrize("example_padded", [True, False])
@pytest.mark.parametrize("how", WAYS)
def test_no_range_holds_a_mask_even_if_the_example_had_no_padding(how: str, example_padded: bool) -> None:
    model, prepared = calibrated(how, example_padded=example_padded)

    for name, module in fake_quants(prepared).items():
        assert module.observer.min_val.min() > -1000, name
    expected, actual = model(*inputs(padded=True)), prepared(*inputs(padded=True))
    assert torch.cosine_similarity(actual, expected, dim=-1).min() > 0.99


@pytest.mark.parametrize("how", WAYS)
def test_what_is_masked_does_not_change_the_result(how: str) -> None:
    _, prepared = calibrated(how, example_padded=True)
    ids, keep = inputs(padded=True)
    others = torch.where(keep.bool(), ids, torch.full_like(ids, 7))

    torch.testing.assert_close(prepared(others, keep), prepared(ids, keep), rtol=0, atol=0)


def test_a_small_constant_mask_is_seen_as_one() -> None:
    class Windowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([[0.0, -100.0], [-100.0, 0.0]]))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.transpose(-1, -2) + self.mask).softmax(-1)

    prepared = prepare(Windowed(), {"": get_default_qconfig()}, example_inputs=(torch.randn(3, 2, 4),))

    assert set(fake_quants(prepared)) == {"input.x", "matmul_0.output", "softmax_0.output"}


LOWEST = torch.finfo(torch.float32).min
MORE_WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a small product": lambda scores, keep: scores + (1.0 - keep.float()) * -100.0,
    "its logarithm": lambda scores, keep: scores + keep.float().log(),
    "subtracted": lambda scores, keep: scores * keep - 1e4 * (~keep),
    "written": lambda scores, keep: scores.masked_fill_(~keep, -1e9),
    "assigned": lambda scores, keep: _assigned(scores, ~keep.expand_as(scores)),
    "bounded": lambda scores, keep: torch.max(scores + (~keep) * LOWEST, torch.tensor(LOWEST)),
    "clamped": lambda scores, keep: (scores + (~keep) * LOWEST).clamp(min=LOWEST),
    "with a bias": lambda scores, keep: scores + (scores[:1] + torch.where(keep, 0.0, LOWEST)),
    "filled with a small number": lambda scores, keep: scores.masked_fill(~keep, -100.0),
    "the lesser": lambda scores, keep: torch.minimum(scores, torch.where(keep, torch.inf, LOWEST)),
    "a large number subtracted": lambda scores, keep: scores - torch.where(keep, 0.0, 1e9),
    "infinity subtracted": lambda scores, keep: scores - torch.where(keep, 0.0, torch.inf),
    "subtracted from": lambda scores, keep: -(torch.where(keep, 0.0, 1e9) - scores),
    "a fused product": lambda scores, keep: torch.addcmul(scores, (~keep).float(), torch.tensor(-1e9)),
    "interpolated": lambda scores, keep: torch.lerp(scores, torch.tensor(-1e9), (~keep).float()),
    "below a matrix product": lambda scores, keep: torch.baddbmm(
        torch.where(keep, 0.0, -1e9).expand_as(scores), scores, torch.eye(6).expand(3, 6, 6)
    ),
    "made finite": lambda scores, keep: scores.masked_fill(~keep, -torch.inf).nan_to_num(neginf=-1e9),
    "through a threshold": lambda scores, keep: F.threshold(scores * keep - 40.0 * (~keep), -30.0, -1e9),
    "in the logarithm": lambda scores, keep: scores.masked_fill(~keep, -1e9).log_softmax(-1),
    "padded": lambda scores, keep: F.pad(scores, (0, 1), value=-1e9)[..., :6].masked_fill(~keep, -1e9),
    "linear biases": lambda scores, keep: _with_linear_bias(scores).masked_fill(~keep, -torch.inf),
    "blocks": lambda scores, keep: scores.masked_fill(~(keep & _in_block(scores)), LOWEST / 2),
    "made from lengths": lambda scores, keep: scores.masked_fill(_behind(keep), -65504.0),
    "whole numbers": lambda scores, keep: scores + (1 - keep.long()) * -10000,
    "whole numbers subtracted": lambda scores, keep: (~keep) * 100 * -1 + scores,
    "a small number subtracted": lambda scores, keep: scores - (~keep) * 100.0,
    "a small number chosen": lambda scores, keep: scores + torch.where(keep, 0.0, -100.0),
    "a bonus": lambda scores, keep: scores + 100 * keep,
    "in another dtype": lambda scores, keep: (scores.double() + torch.where(keep, 0.0, LOWEST)).float(),
}


def _with_linear_bias(scores: Tensor) -> Tensor:
    position = torch.arange(scores.shape[-1])
    return scores - 0.25 * (position[:, None] - position).abs()


def _in_block(scores: Tensor) -> Tensor:
    block = torch.arange(scores.shape[-1]) // 2
    return ((block[:, None] - block).abs() <= 1) | (block == 0)


def _behind(keep: Tensor) -> Tensor:
    return torch.arange(keep.shape[-1]) >= keep.sum(-1, keepdim=True)


def _assigned(scores: Tensor, hidden: Tensor) -> Tensor:
    scores[hidden] = float("-inf")
    return scores


class Attention(nn.Module):
    """One head; ``weights`` of the last call are kept."""

    def __init__(self, mask: Callable[[Tensor, Tensor], Tensor], width: int = 16) -> None:
        super().__init__()
        self.mask = mask
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2)
        self.weights = self.mask(scores, keep[:, None, :]).softmax(-1)
        return self.weights @ self.value(x)


def _distances() -> Tensor:
    return (torch.arange(6)[:, None] - torch.arange(6)).abs()


@pytest.mark.parametrize("bias", [_distances, lambda: 0.25 * _distances(), lambda: torch.zeros(6)])
def test_what_is_added_to_scores_and_is_no_choice_is_no_mask(bias: Callable[[], Tensor]) -> None:
    model, x = Called(lambda scores: (scores + bias()).softmax(-1)), torch.randn(2, 6, 6)
    roles = {
        row.op: row.role
        for row in plan_of(prepare(model, {"": get_default_qconfig()}, example_inputs=x)).rows
    }

    assert (roles["add"], roles["softmax"]) == ("quantized", "quantized")


@pytest.mark.parametrize("example_padded", [True, False])
@pytest.mark.parametrize("way", MORE_WAYS)
def test_other_ways_to_write_a_mask(way: str, example_padded: bool) -> None:
    torch.manual_seed(0)
    model, x, keep = Attention(MORE_WAYS[way]), torch.randn(3, 6, 16), torch.ones(3, 6, dtype=torch.bool)
    keep[0, 2:] = keep[1, 4:] = False
    example = (x, keep if example_padded else torch.ones_like(keep))
    prepared = prepare(model, {"": get_default_qconfig()}, example_inputs=example)
    with calibrating(prepared):
        prepared(x, keep)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    similarity = torch.cosine_similarity(prepared(x, keep).flatten(), model(x, keep).flatten(), dim=0)
    assert similarity > 0.99
    assert not prepared.weights.masked_select(~keep[:, None, :]).any()
    assert min(module.observer.min_val.min() for module in fake_quants(prepared).values()) > -50


def _normalized(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def _greatest(scores: Tensor) -> Tensor:
    return scores.amax(-1, keepdim=True)


def _in_blocks(scores: Tensor) -> Tensor:
    """The softmax of a loop over blocks, which corrects what it has when a greater value comes."""
    greatest, total, found = torch.full_like(scores[..., :1], -1e30), torch.zeros_like(scores[..., :1]), []
    for block in scores.split(2, -1):
        greater = torch.maximum(greatest, _greatest(block))
        correction, weights = (greatest - greater).exp(), (block - greater).exp()
        total = total * correction + weights.sum(-1, keepdim=True)
        found, greatest = [*(part * correction for part in found), weights], greater
    return torch.cat(found, -1) / total


def _hidden(scores: Tensor, keep: Tensor) -> Tensor:
    return scores.masked_fill(~keep, -torch.inf)


WRITTEN_OUT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "no maximum": lambda scores, keep: _normalized(_hidden(scores, keep).exp()),
    "base 2": lambda scores, keep: _normalized(torch.exp2(_hidden(scores, keep) * 1.4427)),
    "a small number added": lambda scores, keep: (
        (e := _hidden(scores, keep).exp()) / (e.sum(-1, keepdim=True) + 1e-6)
    ),
    "a least sum": lambda scores, keep: (
        (e := _hidden(scores, keep).exp()) / e.sum(-1, keepdim=True).clamp(min=1e-9)
    ),
    "by the reciprocal": lambda scores, keep: (
        (e := _hidden(scores, keep).exp()) * (1 / e.sum(-1, keepdim=True))
    ),
    "normalized": lambda scores, keep: F.normalize(_hidden(scores, keep).exp(), p=1, dim=-1),
    "the maximum": lambda scores, keep: _normalized(
        (_hidden(scores, keep) - _greatest(_hidden(scores, keep))).exp()
    ),
    "of the logarithm": lambda scores, keep: _hidden(scores, keep).log_softmax(-1).exp(),
    "by logsumexp": lambda scores, keep: ((s := _hidden(scores, keep)) - s.logsumexp(-1, keepdim=True)).exp(),
    "softmin": lambda scores, keep: F.softmin(-_hidden(scores, keep), dim=-1),
    "blocks": lambda scores, keep: _in_blocks(_hidden(scores, keep)),
    "masked exponentials": lambda scores, keep: _normalized(scores.exp() * keep),
    "masked below the maximum": lambda scores, keep: _normalized((scores - _greatest(scores)).exp() * keep),
    "masked behind": lambda scores, keep: _normalized(scores.softmax(-1) * keep),
    "filled behind": lambda scores, keep: _normalized(scores.softmax(-1).masked_fill(~keep, 0.0)),
    "masked before and behind": lambda scores, keep: (
        (p := (scores * keep).softmax(-1) * keep) / (p.sum(-1, keepdim=True) + 1e-13)
    ),
    "triangular behind": lambda scores, keep: _normalized(torch.tril(scores.softmax(-1)) * keep),
    "gates": lambda scores, keep: _normalized(scores.sigmoid() * keep),
}


class Weighted(Attention):
    """An attention whose ``mask`` gives the weights, of scores between -30 and 30."""

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2)
        self.weights = self.mask(3 * scores, keep[:, None, :])
        return self.weights @ self.value(x)


@pytest.mark.parametrize("way", WRITTEN_OUT)
def test_a_softmax_that_is_written_out(way: str) -> None:
    torch.manual_seed(0)
    model, x, keep = Weighted(WRITTEN_OUT[way]), 1.7 * torch.randn(3, 6, 16), torch.ones(3, 6).bool()
    keep[0, 2:] = keep[1, 4:] = False
    prepared = prepare(model, {"": get_default_qconfig()}, example_inputs=(x, torch.ones_like(keep)))
    with calibrating(prepared):
        prepared(x, keep)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    expected, actual = model(x, keep), prepared(x, keep)
    assert torch.cosine_similarity(actual, expected, dim=-1).min() > 0.95
    assert torch.cosine_similarity(actual.flatten(), expected.flatten(), dim=0) > 0.99
    assert not prepared.weights.masked_select(~keep[:, None, :]).any()
    assert max(module.observer.max_val.max() for module in fake_quants(prepared).values()) < 100


REPLACED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # by the name of the op that does it
    "nan_to_num_0": lambda weights, keep: weights.nan_to_num(),
    "masked_fill_1": lambda weights, keep: weights.masked_fill(~keep, 0.0),
    "where_0": lambda weights, keep: torch.where(keep, weights, 0.0),
}


@pytest.mark.parametrize("way", REPLACED)
def test_rows_of_which_all_is_masked_may_be_nan_until_they_are_replaced(way: str) -> None:
    torch.manual_seed(0)
    replace = REPLACED[way]
    model = Weighted(lambda scores, keep: replace(_hidden(scores, keep).softmax(-1), keep))
    x, keep = torch.randn(3, 6, 16), torch.ones(3, 6).bool()
    keep[0, 2:] = keep[1] = False
    prepared = prepare(model, {"": get_default_qconfig()}, example_inputs=(x, torch.ones_like(keep)))
    with calibrating(prepared):
        prepared(x, keep)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    expected, actual = model(x, keep), prepared(x, keep)
    assert torch.cosine_similarity(actual.flatten(), expected.flatten(), dim=0) > 0.99
    assert not actual[1].any() and not expected[1].any()
    reasons = {row.name: row.reason for row in plan_of(prepared).rows}
    assert reasons["softmax_0"] == f"is NaN where all is masked, before {way}: quantized behind that"


def test_products_with_exponentials_of_any_size_are_in_float() -> None:
    def forward(scores: Tensor, value: Tensor) -> Tensor:
        weights = scores.exp()
        return (weights @ value) / weights.sum(-1, keepdim=True)

    example = (30 * torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 4, 4))
    prepared = prepare(Called(forward), {"": get_default_qconfig()}, example_inputs=example)

    reason = (
        "only its ratios count, for it is divided by its sum: rounded before, what is small would be lost"
    )
    assert [(row.name, row.role, row.reason) for row in plan_of(prepared).rows] == [
        ("exp_0", "float", reason),
        ("matmul_0", "float", reason),
        ("sum_0", "float", reason),
        ("div_0", "quantized", ""),
    ]


def test_products_with_exponentials_below_their_greatest_are_quantized() -> None:
    def forward(scores: Tensor, value: Tensor) -> Tensor:
        weights = (scores - _greatest(scores)).exp()
        return (weights @ value) / weights.sum(-1, keepdim=True)

    example = (torch.randn(2, 4, 4), torch.ones(2, 4, 4))
    prepared = prepare(Called(forward), {"": get_default_qconfig()}, example_inputs=example)

    roles = {row.name: row.role for row in plan_of(prepared).rows}
    assert (roles["exp_0"], roles["matmul_0"]) == ("quantized", "quantized")


def test_a_softmax_over_the_edges_of_a_graph_is_in_float_up_to_its_division() -> None:
    def forward(scores: Tensor, nodes: Tensor) -> Tensor:
        weights = scores.exp()
        sums = weights.new_zeros(3).scatter_add_(0, nodes, weights)
        return weights / sums[nodes]

    example = (torch.randn(6), torch.tensor([0, 1, 2, 2, 1, 0]))
    prepared = prepare(Called(forward), {"": get_default_qconfig()}, example_inputs=example)
    roles = {row.name: row.role for row in plan_of(prepared).rows}
    assert (roles["exp_0"], roles["scatter_add_0"], roles["div_0"]) == ("float", "float", "quantized")


def _decayed(x: Tensor) -> Tensor:
    """As in Mamba 2: what a state keeps from one step to another, for each two of them."""
    passed = (-F.softplus(x)).cumsum(-1)
    later = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool).triu(1)
    between = (passed[..., :, None] - passed[..., None, :]).masked_fill(later, -torch.inf)
    return between.exp() @ x[..., None] + passed[..., None].exp()


def test_a_running_sum_for_exponentials_is_in_float() -> None:
    x = 4 * torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    prepared = prepare(Called(_decayed), {"": get_default_qconfig()}, example_inputs=(x,))
    rows = {row.name: row for row in plan_of(prepared).rows}
    reason = "a running sum, or what two differ by: rounded before, its exponential would be off by a factor"
    assert {name for name, row in rows.items() if row.reason == reason} >= {"cumsum_0", "sub_0"}
    assert {rows[name].role for name in ("neg_0", "exp_0", "exp_1", "matmul_0")} == {"quantized"}
    assert not rows["exp_0"].inputs and not rows["exp_1"].inputs

    with calibrating(prepared):
        prepared(x)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    expected = _decayed(x)
    assert (prepared(x) - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("use", [torch.tanh, lambda y: y, lambda y: y.exp() + y])
def test_a_running_sum_that_is_read_for_more_is_quantized(use: Callable[[Tensor], Tensor]) -> None:
    model = Called(lambda x: use(x.cumsum(-1)))
    prepared = prepare(model, {"": get_default_qconfig()}, example_inputs=(torch.randn(2, 8),))
    assert next(row.role for row in plan_of(prepared).rows if row.op == "cumsum") == "quantized"


@pytest.mark.parametrize(("dim", "role"), [(-1, "quantized"), (-2, "float")])
def test_a_softmax_whose_whole_rows_are_added_up_is_quantized(dim: int, role: str) -> None:
    """As in ConViT, which mixes two; the slots of slot attention are normalized along the other dimension."""
    gate = nn.Parameter(torch.tensor(0.3))

    def forward(scores: Tensor) -> Tensor:
        return _normalized(gate.sigmoid() * scores.softmax(dim) + (1 - gate.sigmoid()))

    model = Called(forward)
    model.gate = gate
    prepared = prepare(model, {"": get_default_qconfig()}, example_inputs=(torch.randn(2, 4, 4),))

    roles = {row.name: row.role for row in plan_of(prepared).rows}
    assert (roles["softmax_0"], roles["mul_0"], roles["add_0"]) == (role, role, role)


class Called(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def _sparsemax(scores: Tensor, keep: Tensor) -> Tensor:
    """Martins & Astudillo 2016: the sums of the greatest say how many of them are not 0."""
    scores = scores.masked_fill(~keep.bool(), -1e4)
    ordered = scores.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    count = (torch.arange(1.0, 7.0) * ordered > excess).sum(-1, keepdim=True)
    return (scores - excess.gather(-1, count - 1) / count).clamp(min=0)


def test_sums_of_what_is_masked_are_masked() -> None:
    model, scores = Called(_sparsemax), torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    keep = (torch.arange(6) < torch.tensor([6, 4, 2])[:, None])[:, None].float()
    prepared = prepare(model, {"": get_default_qconfig()}, example_inputs=(scores, torch.ones_like(keep)))
    with calibrating(prepared):
        prepared(scores, keep)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    weights = prepared(scores, keep)
    torch.testing.assert_close(weights, model(scores, keep), rtol=0, atol=0.1)
    assert not (weights * (1 - keep)).any()


INPUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # `keep` is the numbers 0 and 1
    "infinity": lambda scores, keep: scores + keep.log(),
    "a product": lambda scores, keep: scores + (1.0 - keep) * -10000.0,
    "a product below a bias": lambda scores, keep: (scores / 4 + (1.0 - keep) * -1e9) + 0.5,
    "a product subtracted": lambda scores, keep: scores - (1.0 - keep) * 1e9,
    "a comparison": lambda scores, keep: scores.masked_fill(keep == 0, LOWEST),
}


def check_given(model: Attention, x: Tensor, example: Tensor, mask: Tensor, keep: Tensor) -> None:
    prepared = prepare(model, {"": get_default_qconfig()}, example_inputs=(x, example))
    with calibrating(prepared):
        prepared(x, mask)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    assert torch.cosine_similarity(prepared(x, mask).flatten(), model(x, mask).flatten(), dim=0) > 0.99
    assert not prepared.weights.masked_select(keep[:, None, :] == 0).any()
    assert min(module.observer.min_val.min() for module in fake_quants(prepared).values()) > -50


def given() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    keep = torch.ones(3, 6)
    keep[0, 2:] = keep[1, 4:] = 0
    return torch.randn(3, 6, 16), keep


@pytest.mark.parametrize("example_padded", [True, False])
@pytest.mark.parametrize("way", INPUTS)
def test_a_mask_of_numbers_that_the_model_is_given(way: str, example_padded: bool) -> None:
    x, keep = given()
    check_given(Attention(INPUTS[way]), x, keep if example_padded else torch.ones_like(keep), keep, keep)


@pytest.mark.parametrize("example_padded", [True, False])
@pytest.mark.parametrize("number", [-torch.inf, LOWEST / 2, -1e9, -1e4, -100.0])
def test_a_mask_that_the_model_is_given_ready_to_be_added(number: float, example_padded: bool) -> None:
    x, keep = given()
    mask = torch.where(keep > 0, 0.0, number)
    model = Attention(lambda scores, mask: scores + mask)
    check_given(model, x, mask if example_padded else torch.zeros_like(mask), mask, keep)


Pooling = Callable[[Tensor, Tensor], Tensor]
POOLED: dict[str, Pooling] = {  # over the tokens; `keep` is booleans
    "a product": lambda y, keep: (y + (~keep) * -1e9).max(1).values,
    "the minimum": lambda y, keep: (y + (1 - keep.float()) * LOWEST).amax(1),
    "filled": lambda y, keep: y.masked_fill(~keep, -1e9).max(1)[0],
    "chosen": lambda y, keep: torch.where(keep, y, -torch.inf).amax(1),
    "the greatest": lambda y, keep: y.masked_fill(~keep, -1e9).topk(2, 1).values.mean(1),
    "sorted": lambda y, keep: y.masked_fill(~keep, -torch.inf).sort(1, descending=True).values[:, 0],
    "smoothly": lambda y, keep: (y + (~keep) * -1e9).logsumexp(1),
    "the least": lambda y, keep: y.masked_fill(~keep, torch.inf).amin(1),
}
POOLED_BY_NUMBERS: dict[str, Pooling] = {  # `keep` is the numbers 0 and 1
    "a product": lambda y, keep: (y + (1.0 - keep) * -1e9).max(1).values,
    "a product subtracted": lambda y, keep: (y - (1.0 - keep) * 1e9).amax(1),
    "a comparison": lambda y, keep: y.masked_fill(keep == 0, -1e9).max(1).values,
    "its logarithm": lambda y, keep: (y + keep.log()).amax(1),
}


class Pooled(nn.Module):
    """The greatest of each channel over the tokens, between two layers."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.last(self.pooling(torch.tanh(self.first(x)), keep[..., None]))


def check_pooled(pooling: Pooling, example: Tensor, keep: Tensor) -> None:
    model, x = Pooled(pooling), given()[0]
    prepared = prepare(model, {"": get_default_qconfig()}, example_inputs=(x, example))
    with calibrating(prepared):
        prepared(x, keep)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    assert torch.cosine_similarity(prepared(x, keep), model(x, keep)).min() > 0.99
    assert max(module.value_range()[1].max() for module in fake_quants(prepared).values()) < 5
    assert min(module.value_range()[0].min() for module in fake_quants(prepared).values()) > -5


@pytest.mark.parametrize("example_padded", [True, False])
@pytest.mark.parametrize("way", POOLED)
def test_a_mask_before_a_maximum(way: str, example_padded: bool) -> None:
    keep = given()[1].bool()
    check_pooled(POOLED[way], keep if example_padded else torch.ones_like(keep), keep)


@pytest.mark.parametrize("example_padded", [True, False])
@pytest.mark.parametrize("way", POOLED_BY_NUMBERS)
def test_a_mask_of_numbers_before_a_maximum(way: str, example_padded: bool) -> None:
    keep = given()[1]
    check_pooled(POOLED_BY_NUMBERS[way], keep if example_padded else torch.ones_like(keep), keep)


@pytest.mark.parametrize("example_padded", [True, False])
def test_a_mask_that_the_model_is_given_before_a_maximum(example_padded: bool) -> None:
    mask = (1.0 - given()[1]) * -1e9
    check_pooled(lambda y, mask: (y + mask).amax(1), mask if example_padded else 0.0 * mask, mask)


def test_a_second_input_with_a_number_for_each_channel_is_data() -> None:
    x = torch.randn(3, 6, 16)
    prepared = prepare(Added(), {"": get_default_qconfig()}, example_inputs=(x, x.clone()))

    assert {"add_0.output", "input.other"} <= set(fake_quants(prepared))


class Added(nn.Module):
    """Two inputs, with a number for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.last((torch.tanh(self.first(x)) + other).amax(1))


class Residual(nn.Module):
    """An input that is added to what a softmax reads, and is no mask: a layer reads it too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.fc(x) + x).softmax(-1)


def test_an_input_that_a_layer_reads_is_no_mask() -> None:
    prepared = prepare(Residual(), {"": get_default_qconfig()}, example_inputs=torch.randn(2, 4))

    assert set(fake_quants(prepared)) == {"input.x", "fc.weight", "add_0.output", "softmax_0.output"}


@pytest.mark.parametrize("least", [float("-inf"), torch.finfo(torch.float32).min])
def test_a_border_that_no_maximum_is_has_the_grid_of_what_it_surrounds(least: float) -> None:
    class Bordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.pad(self.first(x), (0, 1, 0, 1), value=least)
            return self.last(F.max_pool2d(y, 2))

    torch.manual_seed(0)
    model, x = Bordered(), torch.randn(2, 3, 7, 7)
    prepared = prepare(model, {"": get_default_qconfig()}, example_inputs=(x,))
    assert {row.name: row.role for row in plan_of(prepared).rows} == {
        "first": "quantized", "pad_0": "passed through",
        "max_pool2d_0": "passed through", "last": "quantized",
    }  # fmt: skip
    assert set(fake_quants(prepared)) == {
        "input.x", "first.weight", "first.output", "last.weight", "last.output",
    }  # fmt: skip
    with calibrating(prepared):
        prepared(x)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    assert torch.cosine_similarity(prepared(x).flatten(), model(x).flatten(), dim=0) > 0.99


@pytest.mark.parametrize(
    "read",
    [
        lambda y: y.softmax(-1),
        lambda y: (F.max_pool1d(y, 2), y),
        lambda y: F.max_pool1d(y, 2) + (y > 0.5).sum(),
    ],
)
def test_a_border_that_more_than_a_maximum_reads_is_a_mask(read: Callable[[Tensor], Any]) -> None:
    class Bordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Any:
            return read(F.pad(self.first(x), (0, 1), value=-torch.inf))

    prepared = prepare(Bordered(), {"": get_default_qconfig()}, example_inputs=(torch.randn(2, 4),))
    assert {row.name: row.role for row in plan_of(prepared).rows}["pad_0"] == "float"
