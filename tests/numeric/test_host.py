"""What is counted with the host's floats has the bits of what tensor operations count."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, strategies as st

from quantcfg.errors import NumericError
from quantcfg.numeric.host import is_on_host
from quantcfg.numeric.observers.min_max import MinMaxObserver
from quantcfg.numeric.qparams import choose_qparams

BATCHES = [
    torch.randn(7, 3, generator=torch.Generator().manual_seed(k)) * 10.0 ** (k % 9 - 4) for k in range(20)
]
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def stream(observer, *, dtype):
    """Twenty batches, among them bad ones and an empty one, and what was said of them."""
    said = []
    bad = torch.full((3,), math.nan)
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
@pytest.mark.parametrize("qscheme", ["per_tensor_symmetric", "per_tensor_affine"])
def test_min_max_has_the_same_state_and_qparams(qscheme, constant, folds, dtype, request):
    observer = MinMaxObserver(qscheme=qscheme, averaging_constant=constant)
    observer.fold_batches = folds
    other = copy.deepcopy(observer)
    said, qparams = stream(observer, dtype=dtype), observer.qparams()
    request.getfixturevalue("on_a_device")
    assert said == stream(other, dtype=dtype)
    for name, value in other.state_dict().items():
        assert torch.equal(observer.state_dict()[name], value), name
    assert all(torch.equal(a, b) for a, b in zip(qparams, other.qparams(), strict=True))


@given(ends=st.tuples(FLOAT32, FLOAT32), bits=st.integers(2, 16), symmetric=st.booleans())
def test_qparams_of_one_range_are_those_of_a_channel(ends, bits, symmetric):
    low, high = torch.tensor([min(ends)]), torch.tensor([max(ends)])
    options = {"quant_min": -(2 ** (bits - 1)), "quant_max": 2 ** (bits - 1) - 1, "symmetric": symmetric}
    alone, among = (
        choose_qparams(low, high, **options),
        choose_qparams(low.repeat(2), high.repeat(2), **options),
    )
    for one, many in zip(alone, among, strict=True):
        assert one.dtype == many.dtype and torch.equal(one, many[:1])


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
