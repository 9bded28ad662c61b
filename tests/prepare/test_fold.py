"""Batch norm: folded, kept live, or frozen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, plan_of, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig
from tests.prepare.models import ResNet

GLOBAL = {"": get_default_qconfig()}


def trained(norm: nn.Module) -> nn.Module:
    """Give a batch norm statistics and an affine that are far from the identity."""
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 3)
        norm.weight.normal_()
        norm.bias.normal_()
    return norm


PAIRS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2), lambda: nn.BatchNorm1d(6), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, bias=False), lambda: nn.BatchNorm2d(6), (2, 4, 9, 9)),
    "conv2d_depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), lambda: nn.BatchNorm2d(4), (2, 4, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), lambda: nn.BatchNorm3d(6), (2, 4, 5, 5, 5)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), lambda: nn.BatchNorm1d(6), (2, 4, 9)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), lambda: nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 6, 3), lambda: nn.BatchNorm3d(6), (2, 4, 3, 3, 3)),
    "linear": (lambda: nn.Linear(4, 6), lambda: nn.BatchNorm1d(6), (5, 4)),
}


def pair(name: str) -> tuple[nn.Module, Tensor]:
    gemm, norm, shape = PAIRS[name]
    return nn.Sequential(gemm(), trained(norm()), nn.ReLU()).eval(), torch.randn(shape)


@pytest.mark.parametrize("name", PAIRS)
def test_folding_changes_nothing_beyond_rounding(name: str) -> None:
    model, x = pair(name)
    prepared = prepare(model, GLOBAL, example_inputs=(x,), bn="fold")
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    assert isinstance(prepared[1], nn.Identity)
    torch.testing.assert_close(prepared(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bn", ["keep", "freeze"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_kept_batch_norm_quantizes_the_folded_weights(name: str, bn: str) -> None:
    model, x = pair(name)
    results = {}
    for mode in ("fold", bn):
        prepared = prepare(model, GLOBAL, example_inputs=(x,), bn=mode)
        with calibrating(prepared):
            prepared(x)
        set_fake_quantize(prepared, FakeQuantState.VALIDATION)
        results[mode] = prepared(x)
        folded = prepared

    step = fake_quants(folded)["2.output"].qparams().scale
    assert (results["fold"] - results[bn]).abs().max() <= 1.01 * step


def test_statistics_stay_live_when_kept_and_rest_when_frozen() -> None:
    x = torch.randn(8, 3, 8, 8) * 3
    for bn, moves in (("keep", True), ("freeze", False)):
        prepared = prepare(ResNet().eval(), GLOBAL, example_inputs=(x,), stage="qat", bn=bn).train()
        before = prepared.stem[1].running_mean.clone()
        prepared(x)
        assert torch.equal(before, prepared.stem[1].running_mean) is not moves
        assert prepared.stem[1].training is moves


def test_training_with_a_kept_batch_norm_equals_the_float_step_when_nothing_is_rounded() -> None:
    """With 16-bit grids the quantized step is the float step up to their steps: the factor cancels."""
    x = torch.randn(8, 3, 8, 8)
    model = ResNet().train()
    fine = get_default_qconfig(activation_qkwargs={"dtype": "qint16"}, weight_qkwargs={"dtype": "qint16"})
    prepared = prepare(model, {"": fine}, example_inputs=(x,), stage="qat", bn="keep").train()

    torch.testing.assert_close(prepared(x), model(x), rtol=1e-2, atol=1e-2)


def test_a_weight_that_something_else_uses_is_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.bn1, self.bn2 = trained(nn.BatchNorm2d(3)), trained(nn.BatchNorm2d(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.bn1(self.conv(x)) + self.bn2(self.conv(x * 2))

    model, x = Shared().eval(), torch.randn(2, 3, 4, 4)
    prepared = prepare(model, GLOBAL, example_inputs=(x,))
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    assert torch.equal(prepared(x), model(x))


@pytest.mark.parametrize("bn", ["fold", "keep", "freeze"])
def test_a_weight_that_is_not_folded_into_is_quantized_as_it_is(bn: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), trained(nn.BatchNorm2d(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(self.conv(x)))

    x = torch.randn(2, 3, 4, 4)
    prepared = prepare(Twice().eval(), GLOBAL, example_inputs=(x,), bn=bn)
    seen: list[Tensor] = []
    fake_quants(prepared)["conv.weight"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with calibrating(prepared):
        prepared(x)

    assert seen[1] is prepared.conv.weight
    rows = {row.name: row for row in plan_of(prepared).rows}
    assert rows["norm"].reason == "not folded into conv:1: conv is called 2 times"
    assert (rows["conv:1"].role, rows["norm"].role) == ("quantized", "quantized")


def test_a_subclass_that_does_more_is_not_folded() -> None:
    class NormAct(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(super().forward(x))

    model = nn.Sequential(nn.Conv2d(3, 3, 1), trained(NormAct(3))).eval()
    x = torch.randn(2, 3, 4, 4)
    prepared = prepare(model, GLOBAL, example_inputs=(x,))
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    assert torch.equal(prepared(x), model(x))
    assert [row.role for row in plan_of(prepared).rows] == ["quantized", "fused", "quantized"]


def test_a_dead_channel_stays_finite() -> None:
    model, x = pair("conv2d")
    model[1].weight.data[2] = 0
    prepared = prepare(model, GLOBAL, example_inputs=(x,), stage="qat", bn="keep").train()

    prepared(x).sum().backward()

    assert all(p.grad.isfinite().all() for p in prepared.parameters() if p.grad is not None)
