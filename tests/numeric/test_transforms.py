"""Fake quantization under the transforms of ``torch.func``: the bits and the gradients of the eager one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quantcfg.numeric.ops import fake_quantize, lsq_fake_quantize, pact_fake_quantize

GRID = {"quant_min": -8, "quant_max": 7}
ZERO = torch.tensor([2], dtype=torch.int32)
X = torch.linspace(-3, 3, 41).repeat(2, 1) * torch.tensor([[1.0], [0.37]])
PARAMETER = torch.tensor([0.25])


def lsq(x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, grad_scaling: bool = False) -> Tensor:
    return lsq_fake_quantize(x, scale, zero_point, grad_scaling=grad_scaling, **GRID)


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fake_quant": lambda x, scale: fake_quantize(x, scale, None, **GRID),
    "fake_quant affine": lambda x, scale: fake_quantize(x, scale, ZERO, **GRID),
    "lsq": lsq,
    "lsq affine": lambda x, scale: lsq(x, scale, ZERO),
    "lsq negative": lambda x, scale: lsq(x, -scale),
    "lsq scaled": lambda x, scale: lsq(x, scale, grad_scaling=True),
    "pact": lambda x, scale: pact_fake_quantize(x, 4 * scale, **GRID),
}


def weighted(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    weights = torch.arange(X.numel()).reshape(X.shape).float()
    return lambda x, parameter: (KINDS[kind](x, parameter) * weights).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_grad_gives_the_gradients_of_backward(kind: str) -> None:
    x, parameter = X.clone().requires_grad_(), PARAMETER.clone().requires_grad_()
    torch.autograd.backward(weighted(kind)(x, parameter))
    expected = torch.zeros(1) if parameter.grad is None else parameter.grad

    grad_x, grad_parameter = torch.func.grad(weighted(kind), argnums=(0, 1))(X, PARAMETER)

    assert x.grad is not None
    assert torch.equal(grad_x, x.grad)
    torch.testing.assert_close(grad_parameter, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_gives_the_bits_of_a_loop(kind: str) -> None:
    actual = torch.func.vmap(KINDS[kind], in_dims=(0, None))(X, PARAMETER)

    assert torch.equal(actual, torch.stack([KINDS[kind](row, PARAMETER) for row in X]))


def test_an_ensemble_has_a_scale_for_each_member() -> None:
    scales = torch.tensor([[0.25], [0.5]])

    actual = torch.func.vmap(KINDS["fake_quant"])(X, scales)

    assert torch.equal(
        actual, torch.stack([KINDS["fake_quant"](*pair) for pair in zip(X, scales, strict=True)])
    )


def test_values_beyond_the_grid_keep_their_bits_and_have_no_gradient() -> None:
    x = torch.tensor([float("inf"), -float("inf"), 1e30, -0.0])

    value = torch.func.vmap(KINDS["fake_quant"], in_dims=(0, None))(x, PARAMETER)
    grad = torch.func.grad(lambda x: KINDS["fake_quant"](x, PARAMETER).sum())(x)

    assert torch.equal(value, torch.tensor([1.75, -2.0, 1.75, 0.0]))
    assert torch.equal(grad, torch.tensor([0.0, 0.0, 0.0, 1.0]))
