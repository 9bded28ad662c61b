"""Folding where a layer or a batch norm has a forward of its own: what it called decides."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantcfg.preparation.plan import OpRow
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, plan_of, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig

GLOBAL = {"": get_default_qconfig()}
IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def trained(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return norm


def folded(*modules: nn.Module) -> tuple[nn.Sequential, nn.Module, OpRow]:
    model = nn.Sequential(*modules).eval()
    prepared = prepare(model, GLOBAL, example_inputs=(IMAGES,))
    set_fake_quantize(prepared, FakeQuantState.FLOAT)
    for other in (prepared, copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        torch.testing.assert_close(other(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    norms = [row for row in plan_of(prepared).rows if row.op == "batch_norm"]
    return model, prepared, norms[0]


class IgnoresItsBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class ScalesItsBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias * 2)


class DividesByItsBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(input=x, weight=self.weight, bias=self.bias) / (1 + self.bias.abs().max())


class ReadsItsNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight.abs().mean()


@pytest.mark.parametrize(
    ("layer", "norm", "reason"),
    [
        (IgnoresItsBias, nn.BatchNorm2d, "not folded into 0: 0 adds another bias than its own"),
        (ScalesItsBias, nn.BatchNorm2d, "not folded into 0: 0 adds another bias than its own"),
        (DividesByItsBias, nn.BatchNorm2d, ""),
        (nn.Conv2d, ReadsItsNorm, "not folded into 0: 1.weight is used 2 times"),
    ],
)
def test_what_something_else_uses_is_not_folded(
    layer: type[nn.Module], norm: type[nn.Module], reason: str
) -> None:
    *_, row = folded(layer(3, 4, 3), trained(norm(4)))

    assert (row.role, row.reason) == ("quantized", reason)


class PadsFirst(nn.Conv2d):
    """A layer without bias whose forward hands over what it has, as those with TensorFlow's padding do."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 2, 1, 2)), self.weight, self.bias, self.stride)


class WantsNoBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is None
        return self._conv_forward(x, self.weight, None)


@pytest.mark.parametrize("layer", [PadsFirst, WantsNoBias])
def test_a_layer_with_a_forward_of_its_own_is_given_the_bias_of_the_fold(layer: type[nn.Module]) -> None:
    _, prepared, row = folded(layer(3, 4, 3, bias=False), trained(nn.BatchNorm2d(4)))
    assert row.reason == "folded into 0"

    prepared = prepare(float_model(layer), GLOBAL, example_inputs=(IMAGES,), stage="qat").train()
    prepared(IMAGES).square().sum().backward()
    assert prepared[0].folded_bias.grad.abs().sum() > 0


def test_a_layer_with_a_forward_of_its_own_is_given_the_bias_of_a_float_state() -> None:
    first, second = float_model(WantsNoBias).eval(), float_model(WantsNoBias).eval()
    prepared = prepare(first, GLOBAL, example_inputs=(IMAGES,))

    assert not prepared.load_state_dict(second.state_dict(), strict=False).unexpected_keys
    set_fake_quantize(prepared, FakeQuantState.FLOAT)
    torch.testing.assert_close(prepared(IMAGES), second(IMAGES), rtol=1e-5, atol=1e-5)


def float_model(layer: type[nn.Module]) -> nn.Module:
    return nn.Sequential(layer(3, 4, 3, bias=False), trained(nn.BatchNorm2d(4)))


class LooksAtItself(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        assert self.weight.shape == self.running_mean.shape == (x.shape[1],)
        return super().forward(x)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm, LooksAtItself])
def test_a_folded_batch_norm_can_still_be_looked_at(kind: type[nn.Module]) -> None:
    model, prepared, row = folded(nn.Conv2d(3, 4, 3), trained(kind(4)))

    assert row.reason == "folded into 0"
    assert (prepared[1].eps, prepared[1].num_features) == (model[1].eps, 4)
    assert torch.equal(prepared[1].running_var, model[1].running_var)
    assert not [key for key in prepared.state_dict() if key.startswith("1.")]
    assert not list(prepared[1].parameters())


def test_the_hooks_of_a_folded_batch_norm_run() -> None:
    norm = trained(nn.BatchNorm2d(4))
    norm.register_forward_hook(lambda module, args, output: 3 * output)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm).eval()

    prepared = prepare(model, GLOBAL, example_inputs=(IMAGES,))
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    torch.testing.assert_close(prepared(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)


def test_a_script_that_synchronizes_batch_norms_leaves_folded_ones_alone() -> None:
    _, prepared, _ = folded(nn.Conv2d(3, 4, 3), trained(nn.BatchNorm2d(4)))
    expected = prepared(IMAGES)

    assert torch.equal(nn.SyncBatchNorm.convert_sync_batchnorm(prepared)(IMAGES), expected)


@pytest.mark.parametrize("bn", ["keep", "freeze"])
def test_calibration_computes_in_float_where_batch_norms_stay(bn: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), trained(nn.BatchNorm2d(4))).eval()
    prepared = prepare(model, GLOBAL, example_inputs=(IMAGES,), bn=bn)

    with calibrating(prepared):
        assert torch.equal(prepared(IMAGES), model(IMAGES))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("frozen", ["", "0.", "0.bias", "1.", "0. 1."])
def test_a_shift_trains_after_folding_if_one_did_before(bias: bool, affine: bool, frozen: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, affine=affine))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(name.startswith(part) for part in frozen.split()))
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    prepared = prepare(model, GLOBAL, example_inputs=(IMAGES,), stage="qat")
    if before:
        prepared(IMAGES).sum().backward()

    assert prepared[0].weight.requires_grad is ("0.weight" in before)
    assert prepared[0].bias.requires_grad is bool(before & {"0.bias", "1.bias"})
    assert (prepared[0].bias.grad is not None) is prepared[0].bias.requires_grad
