"""Masked positions stay masked, and the mask never reaches a range."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quantcfg.prepare.prepare import prepare
from quantcfg.prepare.state import FakeQuantState, calibrating, fake_quants, set_fake_quantize
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
