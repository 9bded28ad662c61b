"""Batch norm: folded, kept live, or frozen."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantcfg.preparation.freezing import freeze_batch_norm
from quantcfg.preparation.live_batch_norm import fold_live_batch_norms
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import (
    FakeQuantState,
    calibrating,
    fake_quants,
    plan_of,
    set_fake_quantize,
)
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


OTHER_AXES = {
    "tokens": (nn.Linear(4, 4), nn.BatchNorm1d(4), (2, 4, 4), 2),
    "more tokens than channels": (nn.Linear(4, 3), nn.BatchNorm1d(5), (2, 5, 4), 2),
    "rows of an image": (nn.Linear(6, 6), nn.BatchNorm2d(3), (2, 3, 6, 6), 3),
    "one image": (nn.Conv2d(4, 4, 1), nn.BatchNorm1d(5), (4, 5, 5), 0),
}


@pytest.mark.parametrize("bn", ["fold", "keep", "freeze"])
@pytest.mark.parametrize("name", OTHER_AXES)
def test_a_batch_norm_along_another_axis_than_the_channels_is_not_folded(name: str, bn: str) -> None:
    layer, norm, shape, axis = OTHER_AXES[name]
    model, x = nn.Sequential(layer, trained(norm), nn.ReLU()).eval(), torch.randn(shape)
    prepared = prepare(model, GLOBAL, example_inputs=(x,), bn=bn).eval()
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    assert torch.equal(prepared(x), model(x))
    reason = f"not folded into 0: the channels of 0 are on axis {axis} of its output, those of 1 on axis 1"
    assert [pair.reason for pair in plan_of(prepared).unfused] == [reason]


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


def test_a_layer_that_is_registered_twice_and_runs_once_is_folded_into() -> None:
    model, x = pair("conv2d")
    model[2].another_name_of_it = model[0]
    prepared = prepare(model, GLOBAL, example_inputs=(x,))

    assert isinstance(prepared[1], nn.Identity)


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
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    prepared(x)

    assert len(seen) == 3 and all(weight is prepared.conv.weight for weight in seen)
    rows = {row.name: row for row in plan_of(prepared).rows}
    assert rows["norm"].reason == "not folded into conv:1: conv is called 2 times"
    assert (rows["conv:1"].role, rows["norm"].role) == ("quantized", "quantized")


class Siamese(nn.Module):
    """One convolution and its batch norm for two images."""

    def __init__(self, joined: bool = True) -> None:
        super().__init__()
        self.conv, self.norm, self.joined = nn.Conv2d(3, 4, 3), trained(nn.BatchNorm2d(4)), joined

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        left, right = self.norm(self.conv(x)), self.conv(y)
        return left.relu() - (self.norm(right) if self.joined else self.norm(right + 1))


@pytest.mark.parametrize("bn", ["fold", "keep", "freeze"])
def test_a_batch_norm_behind_every_call_of_a_layer_is_folded_once(bn: str) -> None:
    torch.manual_seed(0)
    model, images = Siamese().eval(), (torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6))
    prepared = prepare(model, GLOBAL, example_inputs=images, stage="qat", bn=bn)
    prepared.train()(*images)
    set_fake_quantize(prepared.eval(), FakeQuantState.VALIDATION)
    quantized = prepared(*images)
    assert fold_live_batch_norms(prepared) == ([] if bn == "fold" else ["conv", "conv:1"])

    torch.testing.assert_close(prepared(*images), quantized)
    assert isinstance(prepared.norm, nn.Identity)
    assert set(fake_quants(prepared)) == {
        "input.x", "input.y", "conv.weight", "relu_0.output", "conv:1.output", "sub_0.output",
    }  # fmt: skip
    if bn != "keep":  # whose statistics have moved
        set_fake_quantize(prepared, FakeQuantState.FLOAT)
        torch.testing.assert_close(prepared(*images), model(*images))


def test_a_batch_norm_that_one_call_of_a_layer_goes_without_stays() -> None:
    images = (torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6))
    prepared = prepare(Siamese(joined=False).eval(), GLOBAL, example_inputs=images)

    assert [pair.reason for pair in plan_of(prepared).unfused if pair.second == "norm"] == [
        "not folded into conv: conv is called 2 times"
    ]


class NormAct(nn.BatchNorm2d):
    """Batch norm and activation in one module, as model zoos have them."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class InlineNormAct(nn.BatchNorm2d):
    """The same with its own call of batch norm, and functions in place of modules."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            bias=self.bias,
            weight=self.weight,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )
        return torch.relu(x) * 1.5


NORM_ACTS = {
    "relu": lambda channels: NormAct(channels, nn.ReLU(inplace=True)),
    "silu": lambda channels: NormAct(channels, nn.SiLU()),
    "inline": InlineNormAct,
}


def norm_act_model(name: str) -> tuple[nn.Module, Tensor]:
    norms = [trained(NORM_ACTS[name](channels)) for channels in (6, 4)]
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), norms[0], nn.ConvTranspose2d(6, 4, 2), norms[1])
    return model.eval(), torch.randn(4, 3, 8, 8)


@pytest.mark.parametrize("name", NORM_ACTS)
def test_the_batch_norm_of_a_module_that_does_more_is_folded(name: str) -> None:
    model, x = norm_act_model(name)
    prepared = prepare(model, GLOBAL, example_inputs=(x,), bn="fold")
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    for copied in (prepared, copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        torch.testing.assert_close(copied(x), model(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(copied[1](copied[0](x)), model[1](model[0](x)), rtol=1e-5, atol=1e-5)
    assert type(prepared[1]) is type(model[1])
    assert not [key for key in prepared.state_dict() if "running" in key]
    norms = [row for row in plan_of(prepared).rows if row.op == "batch_norm"]
    assert [(row.role, row.reason) for row in norms] == [
        ("fused", "folded into 0"),
        ("fused", "folded into 2"),
    ]


@pytest.mark.parametrize("bn", ["keep", "freeze"])
@pytest.mark.parametrize("name", NORM_ACTS)
def test_the_kept_batch_norm_of_a_module_that_does_more_is_folded_later(name: str, bn: str) -> None:
    model, x = norm_act_model(name)
    prepared = prepare(model, GLOBAL, example_inputs=(x,), bn=bn, stage="qat")
    folded = prepare(model, GLOBAL, example_inputs=(x,), bn="fold", stage="qat")
    with calibrating(prepared):
        prepared(x)
    set_fake_quantize(prepared, FakeQuantState.FLOAT)
    assert torch.equal(prepared(x), model(x))
    assert set(fake_quants(prepared)) == set(fake_quants(folded))

    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    expected = prepared(x)
    assert fold_live_batch_norms(prepared) == ["0", "2"]
    norms = [row for row in plan_of(prepared).rows if row.op == "batch_norm"]
    assert [row.reason for row in norms] == ["folded into 0", "folded into 2"]
    step = float(max(q.qparams().scale.max() for q in fake_quants(prepared).values()))
    assert (prepared(x) - expected).abs().max() <= 1.01 * step
    set_fake_quantize(prepared, FakeQuantState.FLOAT)
    torch.testing.assert_close(prepared(x), model(x), rtol=1e-2, atol=1e-1)  # with weights as they were seen


@pytest.mark.parametrize("bn", ["fold", "keep", "freeze"])
def test_a_module_that_does_more_than_its_batch_norm_is_trained(bn: str) -> None:
    model, x = norm_act_model("relu")
    prepared = prepare(model, GLOBAL, example_inputs=(x,), bn=bn, stage="qat").train()

    prepared(x).square().mean().backward()

    assert all(p.grad is not None and p.grad.isfinite().all() for p in prepared.parameters())


class ScaledFirst(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2)


class OtherAffine(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + 1
        return F.batch_norm(x, self.running_mean, self.running_var, weight, self.bias, eps=self.eps)


class OtherEps(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.1)


class BatchStatistics(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


class OnceMore(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


_OTHER = "normalizes with more than the statistics and the affine of its module"


@pytest.mark.parametrize("bn", ["fold", "keep"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ScaledFirst, "1.mul_0 comes between"),
        (OtherAffine, f"1.batch_norm_0 {_OTHER}"),
        (OtherEps, f"1 {_OTHER}"),
        (BatchStatistics, f"1 {_OTHER}"),
        (OnceMore, "1 calls batch_norm more than once"),
    ],
)
def test_a_subclass_that_normalizes_in_a_way_of_its_own_is_not_folded(
    kind: type[nn.BatchNorm2d], reason: str, bn: str
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), trained(kind(3))).eval()
    x = torch.randn(2, 3, 4, 4)
    prepared = prepare(model, GLOBAL, example_inputs=(x,), bn=bn)
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    assert torch.equal(prepared(x), model(x))
    rows = plan_of(prepared).rows
    norm = next(row for row in rows if row.op == "batch_norm")
    assert (rows[0].role, norm.role) == ("quantized", "quantized")
    assert norm.reason == f"not folded into 0: {reason}"


def test_a_dead_channel_stays_finite() -> None:
    model, x = pair("conv2d")
    model[1].weight.data[2] = 0
    prepared = prepare(model, GLOBAL, example_inputs=(x,), stage="qat", bn="keep").train()

    prepared(x).sum().backward()

    assert all(p.grad.isfinite().all() for p in prepared.parameters() if p.grad is not None)


def test_what_a_frozen_batch_norm_holds_goes_on_training() -> None:
    norm = NormAct(3, nn.Dropout(0.5))
    freeze_batch_norm(norm)

    assert [norm.train().training, norm.act.training] == [False, True]
    assert [norm.eval().training, norm.act.training] == [False, False]


class Frozen(nn.Module):
    """A batch norm as detectors have it: buffers, and a forward that writes it out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Whitened(Frozen):
    """Holds the same, and is no batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / x.std()


def test_a_frozen_batch_norm_that_is_written_out_is_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), trained(Frozen(3)), nn.ReLU())
    x = torch.randn(2, 3, 4, 4)
    prepared = prepare(model, GLOBAL, example_inputs=(x,))
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    torch.testing.assert_close(prepared(x), model(x), rtol=1e-5, atol=1e-5)
    assert [(row.role, row.reason) for row in plan_of(prepared).rows] == [
        ("fused", "fused into 2"), ("fused", "folded into 0"), ("quantized", ""),
    ]  # fmt: skip
    assert set(fake_quants(prepared)) == {"input.input", "0.weight", "2.output"}
    assert type(prepared[1]) is Frozen
    assert [prepared[0].weight.requires_grad, prepared[0].bias.requires_grad] == [True, False]
    torch.testing.assert_close(pickle.loads(pickle.dumps(prepared))(x), prepared(x), rtol=0, atol=0)


@pytest.mark.parametrize("bn", ["keep", "freeze"])
def test_a_frozen_batch_norm_that_stays_computes_its_own_bits(bn: str) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 3, 1), trained(Frozen(3))), torch.randn(2, 3, 4, 4)
    prepared = prepare(model, GLOBAL, example_inputs=(x,), bn=bn)
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    assert torch.equal(prepared(x), model(x))


def test_a_frozen_batch_norm_that_cannot_be_folded_computes_its_own_bits_in_float() -> None:
    model, x = nn.Sequential(nn.ReLU(), trained(Frozen(3)), nn.Conv2d(3, 3, 1)), torch.randn(2, 3, 4, 4)
    prepared = prepare(model, GLOBAL, example_inputs=(x,))
    with calibrating(prepared):
        prepared(x)
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    assert torch.equal(prepared(x), model(x))
    assert [row.role for row in plan_of(prepared).rows] == ["passed through", "quantized", "quantized"]


def test_what_only_looks_like_a_frozen_batch_norm_is_left_alone() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 3, 1), trained(Whitened(3))), torch.randn(2, 3, 4, 4)
    prepared = prepare(model, GLOBAL, example_inputs=(x,))
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    assert torch.equal(prepared(x), model(x))
    assert plan_of(prepared).rows[0].role == "quantized"


class Rounded(torch.autograd.Function):
    """Fake quantize by the formula, its gradient 1 where nothing is clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        codes = torch.round(x / scale)
        ctx.save_for_backward((codes >= -128) & (codes <= 127))
        return codes.clamp(-128, 127) * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grad * kept, None


def folded_factor(layer: nn.Module, norm: nn.Module) -> Tensor:
    """What folding multiplies each weight by, written out weight by weight."""
    factor = torch.rsqrt(norm.running_var + norm.eps) * norm.weight
    if not isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return factor.reshape(-1, *[1] * (layer.weight.dim() - 1))
    per_group = layer.weight.shape[0] // layer.groups
    rows = [factor.chunk(layer.groups)[index // per_group] for index in range(layer.weight.shape[0])]
    return torch.stack(rows).reshape(*layer.weight.shape[:2], *[1] * (layer.weight.dim() - 2))


@pytest.mark.parametrize("variance", [1.0, 1e-8])
@pytest.mark.parametrize("name", PAIRS)
def test_the_gradients_of_a_kept_batch_norm_are_those_of_its_formula(name: str, variance: float) -> None:
    make, norm, shape = PAIRS[name]
    layer, norm = make(), trained(norm())
    norm.running_var.mul_(variance)
    x = torch.randn(shape)
    rules = {"": get_default_qconfig(activation_fake_quant=None)}
    prepared = prepare(nn.Sequential(layer, norm), rules, example_inputs=(x,), stage="qat", bn="keep").train()
    result = prepared(x)
    slope = torch.randn_like(result)
    (result * slope).sum().backward()

    quantizer = fake_quants(prepared)["0.weight"]
    shaped = [-1 if axis == quantizer.ch_axis else 1 for axis in range(layer.weight.dim())]
    factor = folded_factor(layer, norm)
    weight = Rounded.apply(layer.weight * factor, quantizer.qparams().scale.reshape(shaped)) / factor
    expected = norm.train()(torch.func.functional_call(layer, {"weight": weight}, (x,)))
    (expected * slope).sum().backward()

    torch.testing.assert_close(result, expected)
    trained_here = (prepared[0].weight, *prepared[1].parameters())
    for actual, known in zip(trained_here, (layer.weight, *norm.parameters()), strict=True):
        largest = float(known.grad.abs().max())
        torch.testing.assert_close(actual.grad, known.grad, rtol=1e-4, atol=1e-5 * largest)


def loaded(into: nn.Module, state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The weights of a prepared model, or of what holds it, once a float state was loaded without a rest."""
    result = into.load_state_dict({f"{prefix}{key}": value for key, value in state.items()}, strict=False)
    assert not result.unexpected_keys
    assert all("fake_quants" in key for key in result.missing_keys)
    set_fake_quantize(getattr(into, prefix.removesuffix("."), into), FakeQuantState.FLOAT)
    return weights(into)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if "fake_quants" not in key}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    "change", [lambda model: model, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_float_state_is_folded_as_it_is_loaded(name: str, change: Any) -> None:
    (first, x), (second, _) = pair(name), pair(name)
    prepared = change(prepare(first, GLOBAL, example_inputs=(x,)))

    found, wanted = loaded(prepared, second.state_dict()), prepare(second, GLOBAL, example_inputs=(x,))

    torch.testing.assert_close(found, weights(wanted), rtol=0, atol=0)
    torch.testing.assert_close(prepared(x), second(x), rtol=1e-5, atol=1e-5)


class Named(nn.Module):
    """A layer and its batch norm, each under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), trained(nn.BatchNorm2d(4)))
        self.layer, self.norm = self.body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_a_float_state_is_folded_under_every_name_and_inside_of_a_wrapper() -> None:
    first, second, x = Named().eval(), Named().eval(), torch.randn(2, 3, 4, 4)
    wrapper = nn.Module()
    wrapper.inner = prepare(first, GLOBAL, example_inputs=(x,))

    found = loaded(wrapper, second.state_dict(), "inner.")

    assert {key.removeprefix("inner.") for key in found} == {
        "body.0.weight", "body.0.bias", "layer.weight", "layer.bias",
    }  # fmt: skip
    torch.testing.assert_close(wrapper.inner(x), second(x), rtol=1e-5, atol=1e-5)


def test_a_float_state_of_a_part_is_folded_and_one_of_another_size_is_told_by_torch() -> None:
    first, second, x = ResNet().eval(), ResNet().eval(), torch.randn(4, 3, 8, 8)
    trained(second.stem[1])
    prepared = prepare(first, GLOBAL, example_inputs=(x,))

    found = loaded(prepared.stem, second.stem.state_dict())
    torch.testing.assert_close(
        found, weights(prepare(second, GLOBAL, example_inputs=(x,)).stem), rtol=0, atol=0
    )

    wider = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        prepared.stem.load_state_dict(wider.state_dict(), strict=False)


def test_a_state_from_after_folding_is_loaded_as_it_is() -> None:
    (first, x), (second, _) = pair("conv2d"), pair("conv2d")
    prepared, other = (prepare(model, GLOBAL, example_inputs=(x,)) for model in (first, second))

    assert not other.load_state_dict(prepared.state_dict()).missing_keys
    torch.testing.assert_close(weights(other), weights(prepared), rtol=0, atol=0)
