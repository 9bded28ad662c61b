"""PACT: a clipping point that learns from both sides, and where it starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantcfg.numeric import ops
from quantcfg.numeric.fake_quantize import PACTFakeQuantize
from quantcfg.numeric.observers.fixed_scale import FixedScaleObserver
from quantcfg.numeric.qparams import EPS
from tests.numeric import oracles
from tests.numeric.builders import build, calibrated, train


def pact(x, alpha, *, bounds=(-128, 127), ch_axis=-1):
    return ops.pact_fake_quantize(x, alpha, quant_min=bounds[0], quant_max=bounds[1], ch_axis=ch_axis)


@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_equal_central_differences(sign):
    random = np.random.default_rng(0)
    x, alpha = random.normal(size=200) * 3, np.array([2.5])
    weights = random.normal(size=x.shape)
    tensor = torch.tensor(x, requires_grad=True)
    parameter = torch.tensor(sign * alpha, requires_grad=True)
    pact(tensor, parameter).backward(torch.tensor(weights))
    expected_x = oracles.central_differences(lambda v: oracles.pact(v, alpha), x, weights)
    expected_alpha = sign * oracles.central_differences(lambda a: oracles.pact(x, a), alpha, weights)
    np.testing.assert_allclose(tensor.grad.numpy(), expected_x, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(parameter.grad.numpy(), expected_alpha, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("alpha", [6.0, 0.3, 1.7, 9.99])
@pytest.mark.parametrize(
    ("times", "grad_x", "grad_alpha"),
    [(1.0, 0, 1), (-1.0, 0, -1), (1.5, 0, 1), (-1.5, 0, -1), (0.0, 1, 0), (0.99, 1, 0), (-0.99, 1, 0)],
)
def test_gradients_at_the_break_points(alpha, times, grad_x, grad_alpha):
    parameter = torch.tensor([alpha], requires_grad=True)
    x = (parameter.detach() * times).requires_grad_()
    pact(x, parameter).backward()
    assert (x.grad.item(), parameter.grad.item()) == (grad_x, grad_alpha)


def test_the_neighbours_of_alpha_are_told_apart():
    alpha = torch.tensor([1.7], requires_grad=True)
    below = torch.nextafter(alpha.detach(), torch.zeros(1))
    x = torch.cat([below, -below, alpha.detach(), -alpha.detach()]).requires_grad_()
    pact(x, alpha).backward(torch.tensor([1.0, 1.0, 5.0, 3.0]))
    assert x.grad.tolist() == [1, 1, 0, 0]
    assert alpha.grad.item() == 2


def test_alpha_is_alive_on_the_positive_side_at_its_default():
    # In the toolkit whose qconfigs we read it is not: what is clipped to +alpha rounds to 128, off the grid,
    # and the fake quantize behind the clipping masks its gradient.
    module = build("pact")
    module.quantizing = True
    module(torch.tensor([7.0, 8.0, 1.0])).sum().backward()
    assert module.alpha.item() == 6.0
    assert module.alpha.grad.item() == 2.0


def test_channels_have_alphas_and_gradients_of_their_own():
    alpha = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    x = torch.tensor([[1.5, 1.5, 1.5], [-2.5, -2.5, -2.5]], requires_grad=True)
    pact(x, alpha, ch_axis=1).sum().backward()
    assert alpha.grad.tolist() == [0.0, -1.0, 0.0]
    assert x.grad.tolist() == [[0, 1, 1], [0, 0, 1]]


def test_the_scale_is_the_symmetric_one_of_alpha():
    module = calibrated(torch.tensor([-3.0, 1.0]), "pact", dtype="qint4")
    assert module.alpha.item() == pytest.approx(3.0, rel=1e-6)
    assert module.qparams().scale.item() == np.float32(3.0 / 7.5)
    assert module.qparams().zero_point.item() == 0


def test_without_any_observation_alpha_is_the_one_given():
    module = build("pact", alpha=4.0)
    module.quantizing = True
    assert module(torch.tensor([9.0])).item() == pytest.approx(4.0, rel=1e-2)
    assert module.qparams().scale.item() == np.float32(4.0 / 127.5)


def test_training_without_calibration_starts_from_the_first_batch_alone():
    module = train(build("pact"))
    module(torch.tensor([-2.0, 1.0]))
    module(torch.tensor([50.0]))
    assert module.alpha.item() == pytest.approx(2.0, rel=1e-6)
    assert module.observer.num_batches.item() == 1


def test_alpha_stays_positive_whatever_the_optimizer_does():
    module = calibrated(torch.randn(100), "pact")
    optimizer = torch.optim.SGD(module.parameters(), lr=1e3)
    for _ in range(20):
        optimizer.zero_grad()
        module(torch.randn(100) * 5).sum().backward()
        optimizer.step()
        assert (module.qparams().scale >= EPS).all()


def test_alpha_learns_to_clip_an_outlier():
    x = torch.randn(4000)
    x[0] = 40.0
    module = calibrated(x, "pact", dtype="qint4")
    with torch.no_grad():
        module.alpha.fill_(0.5)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (module(x) - x)[1:].square().mean().backward()
        optimizer.step()
    assert 2.0 < module.alpha.item() < 6.0


def test_a_fixed_scale_is_not_learned():
    module = PACTFakeQuantize(FixedScaleObserver(scale=0.25))
    assert not module.alpha.requires_grad
    assert module.qparams().scale.item() == 0.25


@pytest.mark.parametrize(
    ("qscheme", "dtype"), [("per_tensor_affine", "qint8"), ("per_tensor_symmetric", "quint8")]
)
def test_a_grid_whose_ends_are_not_alpha_is_refused(qscheme, dtype):
    with pytest.raises(ValueError) as caught:
        build("pact", qscheme, dtype=dtype)
    assert str(caught.value) == (
        "pact clips to [-alpha, alpha]: it needs a symmetric qscheme and a signed dtype "
        f"(got {qscheme} and {dtype})"
    )


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_no_range_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must be"):
        build("pact", alpha=alpha)
