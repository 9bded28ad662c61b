import pytest
import torch

from quantcfg.stages.gradients import are_finite

KINDS = {
    "float32": torch.tensor([1e38, -0.0, 1e-42]),  # whose squares are infinite
    "float64": torch.full((2, 3), 1e300, dtype=torch.float64),
    "bfloat16": torch.full((5,), 3e38, dtype=torch.bfloat16),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
}


def test_large_finite_gradients_pass_and_stay_what_they_are():
    gradients = [tensor.clone() for tensor in KINDS.values()]
    assert are_finite(gradients)
    for gradient, before in zip(gradients, KINDS.values(), strict=True):
        assert torch.equal(gradient, before)
        assert torch.equal(gradient.signbit(), before.signbit())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_value_is_found(kind, value):
    gradients = [tensor.clone() for tensor in KINDS.values()]
    gradients[list(KINDS).index(kind)][-1] = value
    assert not are_finite(gradients)


@pytest.mark.parametrize(("value", "is_finite"), [(1.0, True), (float("nan"), False)])
def test_sparse_gradients_are_looked_at(value, is_finite):
    embedding = torch.nn.Embedding(3, 2, sparse=True)
    (embedding(torch.tensor([0, 2])) * value).sum().backward()
    assert embedding.weight.grad.is_sparse
    assert are_finite([embedding.weight.grad]) == is_finite


def test_without_gradients_there_is_nothing_bad():
    assert are_finite([])
