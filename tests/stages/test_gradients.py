import pytest
import torch

from quantcfg.stages.gradients import Gradients

KINDS = {
    "float32": torch.tensor([1e38, -0.0, 1e-42]),  # whose squares are infinite
    "float64": torch.full((2, 3), 1e300, dtype=torch.float64),
    "bfloat16": torch.full((5,), 3e38, dtype=torch.bfloat16),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
}


def of(*gradients):
    parameters = [torch.empty_like(gradient) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return Gradients(parameters)


def test_large_finite_gradients_pass_and_stay_what_they_are():
    gradients = [tensor.clone() for tensor in KINDS.values()]
    assert of(*gradients).are_finite()
    for gradient, before in zip(gradients, KINDS.values(), strict=True):
        assert torch.equal(gradient, before)
        assert torch.equal(gradient.signbit(), before.signbit())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_value_is_found(kind, value):
    gradients = [tensor.clone() for tensor in KINDS.values()]
    gradients[list(KINDS).index(kind)][-1] = value
    checked = of(*gradients)
    assert not checked.are_finite()
    gradients[list(KINDS).index(kind)][-1] = 0
    assert checked.are_finite()  # nothing is left over for the next step


@pytest.mark.parametrize(("value", "is_finite"), [(1.0, True), (float("nan"), False)])
def test_sparse_gradients_are_looked_at(value, is_finite):
    embedding = torch.nn.Embedding(3, 2, sparse=True)
    (embedding(torch.tensor([0, 2])) * value).sum().backward()
    assert embedding.weight.grad.is_sparse
    assert Gradients([embedding.weight]).are_finite() == is_finite


def test_without_gradients_there_is_nothing_bad():
    assert Gradients([]).are_finite()
    assert Gradients([torch.ones(2)]).are_finite()
