"""Masked positions stay masked, and the mask never reaches a range."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, set_fake_quantize
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
}


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
