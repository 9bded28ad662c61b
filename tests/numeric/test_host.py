"""What is counted in the host's memory has the bits of what tensor operations count."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch.utils.checkpoint import checkpoint

from quantcfg.errors import NumericError
from quantcfg.numeric.host import is_on_host
from quantcfg.numeric.qparams import choose_qparams
from tests.numeric.builders import SCHEMES, build, train

BATCHES = [
    torch.randn(7, 3, generator=torch.Generator().manual_seed(k)) * 10.0 ** (k % 9 - 4) for k in range(20)
]
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def stream(observer, *, dtype):
    """Twenty batches, among them bad ones and an empty one, and what was said of them."""
    said = []
    bad = torch.full((1, 3), math.nan)
    for x in (*BATCHES, bad, bad.nan_to_num(-math.inf), torch.empty(0), BATCHES[0].t(), *BATCHES):
        try:
            observer(x.to(dtype))
        except NumericError as error:
            said.append(str(error))
    return said


@pytest.fixture
def few_records(monkeypatch):
    """So few that batches are folded away."""
    monkeypatch.setattr("quantcfg.numeric.observers.records._MOST", 16)


@pytest.mark.usefixtures("few_records")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("folds", [True, False])
@pytest.mark.parametrize("constant", [None, 0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("qscheme", SCHEMES)
def test_min_max_has_the_same_state_and_qparams(qscheme, constant, folds, dtype, request):
    observer = build(qscheme=qscheme, observer={"averaging_constant": constant}).observer
    observer.fold_batches = folds
    other = copy.deepcopy(observer)
    said, qparams = stream(observer, dtype=dtype), observer.qparams()
    request.getfixturevalue("on_a_device")
    assert said == stream(other, dtype=dtype)
    for name, value in other.state_dict().items():
        assert torch.equal(observer.state_dict()[name], value), name
    assert all(torch.equal(a, b) for a, b in zip(qparams, other.qparams(), strict=True))


@given(
    ends=st.lists(st.tuples(FLOAT32, FLOAT32), min_size=1, max_size=3),
    bits=st.integers(2, 16),
    symmetric=st.booleans(),
)
def test_qparams_have_the_same_bits(ends, bits, symmetric):
    low, high = (torch.tensor([end(pair) for pair in ends]) for end in (min, max))
    options = {"quant_min": -(2 ** (bits - 1)), "quant_max": 2 ** (bits - 1) - 1, "symmetric": symmetric}
    found = choose_qparams(low, high, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantcfg.numeric.qparams.is_on_host", lambda *_: False)
        expected = choose_qparams(low, high, **options)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def steps_of_training(module):
    """What thirty batches come out as, with their gradients, and how many the module knew to be unclipped."""
    seen, known = [], 0
    for x in (*BATCHES, *(x.abs() for x in BATCHES[:10])):
        y = (leaf := x.clone().requires_grad_()) * 1
        result = module(y)
        known += "Inside" in result.grad_fn.name()
        result.backward(torch.arange(21.0).view(7, 3))
        seen += [result.detach(), leaf.grad]
    return seen, known


@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("dtype", ["qint2", "qint8", "quint16"])
def test_batches_that_are_known_to_lie_on_the_grid_come_out_the_same(dtype, qscheme, constant, request):
    module = train(build(qscheme=qscheme, dtype=dtype, observer={"averaging_constant": constant}))
    other = copy.deepcopy(module)
    seen, known = steps_of_training(module)
    request.getfixturevalue("on_a_device")
    expected, unknown = steps_of_training(other)
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    assert unknown == 0
    assert known > 10 or constant < 1 or "affine" not in qscheme


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_the_greatest_value_of_a_symmetric_range_is_clipped_and_the_least_is_not(end):
    module = train(build(observer={"averaging_constant": 1.0}))
    leaf = torch.tensor([127.5 * end, 0.5], requires_grad=True)
    for _ in range(2):
        module(leaf * 1).sum().backward()
    assert leaf.grad.tolist() == [0.0 if end > 0 else 2.0, 2.0]


def test_a_batch_that_is_not_observed_is_not_taken_for_the_last_one():
    module = train(build())
    for x in (torch.tensor([-2.0, 1.0]), torch.tensor([-1.0, 0.5])):
        module(x)
    module.observing = False
    leaf = torch.tensor([-3.0, 1.0], requires_grad=True)
    module(leaf * 1).sum().backward()
    assert leaf.grad.tolist() == [0.0, 1.0]


def test_activation_checkpointing_runs_a_batch_again_that_was_known_to_lie_on_the_grid():
    module, leaf = train(build()), torch.tensor([-1.0, 0.5], requires_grad=True)
    module(2 * leaf)
    y = checkpoint(lambda x: module(x * 1), leaf, use_reentrant=False)
    y.sum().backward()
    assert leaf.grad.tolist() == [1.0, 1.0]


def test_the_range_of_nothing_gives_the_smallest_scale():
    nothing = torch.tensor([math.inf])
    for symmetric in (True, False):
        options = {"quant_min": -128, "quant_max": 127, "symmetric": symmetric}
        assert choose_qparams(nothing, -nothing, **options).scale.item() == 2.0**-23


def test_a_tensor_that_stands_for_others_is_not_on_the_host():
    found = []
    torch.vmap(lambda x: found.append(is_on_host(x)) or x)(torch.ones(2))
    assert found == [False]
    assert not is_on_host(torch.ones(1, device="meta"))
    assert is_on_host(torch.ones(1))
