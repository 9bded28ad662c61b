"""LSQ: its gradient, where it starts, and a scale that stays positive."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from quantcfg.numeric import ops
from quantcfg.numeric.fake_quantize import LearnableFakeQuantize
from quantcfg.numeric.observers.fixed_scale import FixedScaleObserver
from quantcfg.numeric.qparams import EPS
from tests.numeric import oracles
from tests.numeric.builders import build, calibrated, train

BOUNDS = (-8, 7)


def lsq(x, scale, zero_point=None, *, bounds=BOUNDS, grad_scaling=False, ch_axis=-1):
    return ops.lsq_fake_quantize(
        x,
        scale,
        zero_point,
        quant_min=bounds[0],
        quant_max=bounds[1],
        grad_scaling=grad_scaling,
        ch_axis=ch_axis,
    )


def positions(count, seed=0):
    """In steps, at least 0.1 from a tie, whose integers are not the ends of the grid."""
    random = np.random.default_rng(seed)
    integers = random.integers(BOUNDS[0] - 5, BOUNDS[1] + 6, 2 * count)
    integers = integers[~np.isin(integers, BOUNDS)][:count]
    return integers + random.uniform(-0.4, 0.4, count)


@pytest.mark.parametrize("zero_point", [0, -3])
@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_equal_central_differences(zero_point, sign):
    scale = np.array([0.37])
    x = (positions(60) - zero_point) * scale
    weights = np.random.default_rng(2).normal(size=x.shape)
    tensor = torch.tensor(x, requires_grad=True)
    parameter = torch.tensor(sign * scale, requires_grad=True)
    lsq(tensor, parameter, torch.tensor([zero_point])).backward(torch.tensor(weights))

    def through(x_now, scale_now):
        return oracles.straight_through(x_now, scale_now, zero_point, BOUNDS, at=(x, scale))

    expected_x = oracles.central_differences(lambda v: through(v, scale), x, weights)
    expected_scale = sign * oracles.central_differences(lambda s: through(x, s), scale, weights)
    np.testing.assert_allclose(tensor.grad.numpy(), expected_x, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(parameter.grad.numpy(), expected_scale, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("ch_axis", [0, 1, 2])
def test_channels_have_the_gradients_of_separate_tensors(ch_axis):
    x = torch.randn(4, 4, 4, dtype=torch.float64)
    scale = torch.rand(4, dtype=torch.float64) * 0.2 + 0.1
    grad = torch.randn_like(x)
    together = scale.clone().requires_grad_()
    lsq(x, together, grad_scaling=True, ch_axis=ch_axis).backward(grad)
    for channel in range(4):
        alone = scale[channel : channel + 1].clone().requires_grad_()
        lsq(x.select(ch_axis, channel), alone, grad_scaling=True).backward(grad.select(ch_axis, channel))
        torch.testing.assert_close(together.grad[channel : channel + 1], alone.grad)


@pytest.mark.parametrize(
    ("steps", "grad_x", "grad_scale"),
    [
        (0.0, 1, 0.0),
        (0.25, 1, -0.25),
        (0.5, 1, -0.5),
        (1.5, 1, 0.5),
        (7.0, 1, 0.0),
        (7.25, 1, -0.25),
        (7.5, 0, 7.0),
        (9.0, 0, 7.0),
        (-8.0, 1, 0.0),
        (-8.5, 1, 0.5),
        (-8.75, 0, -8.0),
    ],
)
def test_gradients_at_the_break_points(steps, grad_x, grad_scale):
    x, scale = torch.tensor([steps], requires_grad=True), torch.ones(1, requires_grad=True)
    lsq(x, scale).backward()
    assert (x.grad.item(), scale.grad.item()) == (grad_x, grad_scale)


@pytest.mark.parametrize(("per_channel", "elements"), [(False, 4 * 3 * 5), (True, 4 * 5)])
def test_gradient_scaling_counts_the_elements_that_share_a_scale(per_channel, elements):
    x, size, ch_axis = torch.randn(4, 3, 5), (3 if per_channel else 1), (1 if per_channel else -1)
    grads = []
    for grad_scaling in (False, True):
        scale = torch.full((size,), 0.1, requires_grad=True)
        lsq(x, scale, grad_scaling=grad_scaling, ch_axis=ch_axis).sum().backward()
        grads.append(scale.grad)
    torch.testing.assert_close(grads[1], grads[0] / math.sqrt(elements * BOUNDS[1]))


def test_an_empty_tensor_has_no_gradient_and_no_division_by_zero():
    scale = torch.ones(1, requires_grad=True)
    lsq(torch.ones(0, 3), scale, grad_scaling=True).sum().backward()
    assert scale.grad.item() == 0


def test_the_scale_gradient_sums_a_million_float32_terms_to_one_in_a_million():
    x, grad, scale = (
        torch.randn(1_000_000),
        torch.randn(1_000_000),
        torch.tensor([0.0078], requires_grad=True),
    )
    lsq(x, scale, bounds=(-128, 127)).backward(grad)
    position = (x / scale.detach()).numpy()
    steps, exact = np.round(position), position.astype(np.float64)
    clipped = np.clip(steps, -128, 127)
    terms = grad.double().numpy() * np.where(steps == clipped, clipped - exact, clipped)
    assert scale.grad.item() == pytest.approx(terms.sum(), abs=1e-6 * np.abs(terms).sum())
    assert scale.grad.item() == pytest.approx(terms.sum(), rel=1e-5)


def test_half_precision_gradients_need_not_carry_the_scales_own():
    x = torch.randn(64, dtype=torch.bfloat16)
    scale = torch.tensor([0.1], requires_grad=True)
    lsq(x, scale).sum().backward()
    assert scale.grad.dtype == torch.float32


def test_an_input_without_gradient_still_teaches_the_scale():
    scale = torch.tensor([0.1], requires_grad=True)
    lsq(torch.randn(10), scale).sum().backward()
    assert scale.grad.abs().item() > 0


def test_the_scale_stays_positive_whatever_the_optimizer_does():
    module = calibrated(torch.randn(100), "lsq")
    optimizer = torch.optim.SGD(module.parameters(), lr=1e3)
    for _ in range(20):
        optimizer.zero_grad()
        y = module(torch.randn(100))
        y.square().sum().backward()
        optimizer.step()
        assert (module.qparams().scale >= EPS).all()
        assert y.isfinite().all()


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-12, -1e-12])
def test_a_scale_that_fell_to_nothing_quantizes_with_eps_and_can_grow_again(value):
    module = calibrated(torch.randn(10), "lsq")
    with torch.no_grad():
        module.scale.fill_(value)
    assert module.qparams().scale.item() == EPS
    module(torch.ones(3)).backward(-torch.ones(3))
    assert module.scale.grad.abs().item() > 0


def test_training_without_calibration_starts_from_the_first_batch_alone():
    module = train(build("lsq"))
    module(torch.tensor([-2.0, 1.0]))
    assert module.qparams().scale.item() == np.float32(2 / 127.5)
    module(torch.tensor([50.0]))
    assert module.qparams().scale.item() == np.float32(2 / 127.5)
    assert module.observer.num_batches.item() == 1


def test_training_after_calibration_keeps_the_calibrated_scale():
    module = train(calibrated(torch.tensor([-2.0, 1.0]), "lsq"))
    before = module.observer.state_dict()
    module(torch.tensor([50.0]))
    assert module.qparams().scale.item() == np.float32(2 / 127.5)
    for key, value in module.observer.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_learned_scale_survives_loading_into_a_fresh_module_and_training_on():
    module = calibrated(torch.randn(10), "lsq")
    with torch.no_grad():
        module.scale.fill_(0.123)
    fresh = build("lsq")
    fresh.load_state_dict(module.state_dict())
    train(fresh)(100 * torch.randn(10))
    assert fresh.qparams().scale.item() == np.float32(0.123)


def test_an_affine_zero_point_comes_from_the_first_batch():
    module = train(build("lsq", "per_tensor_affine", dtype="quint8"))
    module(torch.tensor([-1.0, 3.0]))
    assert module.qparams().zero_point.item() == 64


def test_it_learns_a_better_scale_than_the_observed_one():
    x = torch.randn(4000)
    x[0] = 40.0
    module = calibrated(x, "lsq", dtype="qint4", use_grad_scaling=True)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    errors = []
    for _ in range(150):
        optimizer.zero_grad()
        error = (module(x) - x)[1:].square().mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.05 * errors[0]


def test_a_fixed_scale_is_not_learned():
    module = LearnableFakeQuantize(FixedScaleObserver(scale=0.25))
    assert not module.scale.requires_grad
    assert train(module)(torch.tensor([0.3])).item() == 0.25


def test_two_calls_in_one_step_do_not_disturb_each_others_backward():
    module = train(build("lsq"))
    x = torch.randn(10, requires_grad=True)
    (module(x) + module(2 * x)).sum().backward()
    assert module.scale.grad.isfinite().all()
