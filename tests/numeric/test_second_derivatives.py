"""Fake quantization where gradients are differentiated in turn: force fields, gradient penalties."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quantcfg.numeric.fake_quantize import FAKE_QUANTIZES
from quantcfg.numeric.ops import fake_quantize, lsq_fake_quantize, pact_fake_quantize
from tests.numeric.builders import calibrated
from tests.numeric.test_transforms import GRID, PARAMETER, ZERO, X

KINDS: dict[str, Callable[..., Tensor]] = {
    "fake_quant": lambda x, scale, **grid: fake_quantize(x, scale, None, **grid),
    "fake_quant affine": lambda x, scale, **grid: fake_quantize(x, scale, ZERO, **grid),
    "lsq": lambda x, scale, **grid: lsq_fake_quantize(x, scale, None, grad_scaling=False, **grid),
    "lsq affine": lambda x, scale, **grid: lsq_fake_quantize(x, scale, ZERO, grad_scaling=True, **grid),
    "lsq negative": lambda x, scale, **grid: lsq_fake_quantize(x, -scale, None, grad_scaling=False, **grid),
    "pact": lambda x, scale, **grid: pact_fake_quantize(x, 4 * scale, **grid),
}
WIDE_X, WIDE_PARAMETER = X.double(), PARAMETER.double()
PLACES: dict[str, Callable[[Tensor], Tensor]] = {"leaf": lambda x: x, "inner": lambda x: x * 1.0}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_differentiable_gradient_is_the_gradient(kind: str, place: str, dtype: torch.dtype) -> None:
    x, parameter = X.clone().to(dtype).requires_grad_(), PARAMETER.clone().requires_grad_()
    result = KINDS[kind](PLACES[place](x), parameter, **GRID)
    grad = torch.linspace(-1, 2, X.numel()).reshape(X.shape).to(dtype)
    asked = {"inputs": (x, parameter), "grad_outputs": grad, "retain_graph": True, "allow_unused": True}

    once = torch.autograd.grad(result, **asked)
    twice = torch.autograd.grad(result, **asked, create_graph=True)

    assert torch.equal(once[0], twice[0])
    assert (once[1] is None) == (twice[1] is None)
    if once[1] is not None:
        torch.testing.assert_close(once[1], twice[1])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_differentiated_as_central_differences_say(kind: str, place: str) -> None:
    x, parameter = WIDE_X.clone().requires_grad_(), WIDE_PARAMETER.clone().requires_grad_()
    result = KINDS[kind](PLACES[place](x), parameter, **GRID)
    inputs = (x,) if kind.startswith("fake_quant") else (x, parameter)

    def gradients(grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, inputs, grad, create_graph=True)

    weights = torch.linspace(-1, 2, X.numel(), dtype=torch.float64).reshape(X.shape).requires_grad_()
    assert torch.autograd.gradcheck(gradients, (weights,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_penalty_on_gradients_has_the_gradients_that_the_transforms_give(kind: str) -> None:
    def value(x: Tensor, parameter: Tensor) -> Tensor:
        return (KINDS[kind](x * x, parameter, **GRID) * x.sin()).sum()

    def penalty(x: Tensor, parameter: Tensor) -> Tensor:
        return torch.func.grad(value)(x, parameter).square().sum()

    x, parameter = WIDE_X.clone().requires_grad_(), WIDE_PARAMETER.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(x, parameter), x, create_graph=True)
    actual = torch.autograd.grad(slope.square().sum(), (x, parameter), allow_unused=True)

    expected = torch.func.grad(penalty, argnums=(0, 1))(WIDE_X, WIDE_PARAMETER)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.zeros(1).double() if one is None else one, other)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("observing", [False, True])
@pytest.mark.parametrize("kind", FAKE_QUANTIZES)
def test_a_penalty_goes_through_a_module(kind: str, observing: bool, place: str) -> None:
    module = calibrated(X, kind)
    module.observing, module.quantizing = observing, True
    x = X.clone().requires_grad_()

    (slope,) = torch.autograd.grad(module(PLACES[place](x)).square().sum(), x, create_graph=True)
    torch.autograd.backward(slope.square().sum())

    inside = slope.detach() != 0
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 8.0 * inside * module(X).detach())
