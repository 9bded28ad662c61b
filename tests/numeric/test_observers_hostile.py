"""Observers in surroundings that nobody wrote them for: defaults, modes, views, and merges of odd shards."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
import torch
from hypothesis import given, settings, strategies as st

from quantcfg.numeric.observers import OBSERVERS
from tests.numeric.observing import OBSERVING, SOLVED, assert_same_state, build

SCHEMES = ("per_tensor_symmetric", "per_channel_affine")


def scale_after(observer, *batches, training=False):
    observer.fold_batches = training
    for batch in batches:
        observer(batch)
    return observer.qparams().scale


@pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("kind", OBSERVERS)
def test_the_default_dtype_changes_nothing(kind, qscheme, training, default):
    x = torch.randn(4000, 3, 2)
    usual = build(kind, qscheme)
    expected = scale_after(usual, x, training=training)
    try:
        torch.set_default_dtype(default)
        unusual = build(kind, qscheme)
        assert torch.equal(scale_after(unusual, x, training=training), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [b.dtype for b in unusual.buffers()] == [b.dtype for b in usual.buffers()]


@pytest.mark.parametrize("size", [50, 5000])
@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("kind", OBSERVING)
def test_a_view_that_is_negated_when_read_is_seen_negated(kind, qscheme, size):
    view = torch.randn(size, 3, 2, dtype=torch.complex64).conj().imag
    assert view.is_neg()
    for training in (False, True):
        expected = scale_after(build(kind, qscheme), view.clone().resolve_neg(), training=training)
        assert torch.equal(scale_after(build(kind, qscheme), view, training=training), expected)


@pytest.mark.parametrize("kind", OBSERVING)
def test_inference_mode_leaves_nothing_behind_that_could_not_be_written_to(kind):
    x = torch.randn(5000, 3, 2)
    observer = build(kind)
    with torch.inference_mode():
        observer(x)
    observer(x)
    scale_after(observer, x, training=True)
    assert torch.equal(scale_after(build(kind), x), scale_after(build(kind), x))


@pytest.mark.parametrize("kind", OBSERVERS)
def test_a_default_device_does_not_take_over(kind):
    observer, x = build(kind), torch.randn(5000, 3, 2)
    with torch.device("meta"):
        scale_after(observer, x)
        scale = scale_after(observer, x, training=True)
    assert scale.device.type == "cpu"


@pytest.mark.parametrize("kind", SOLVED)
def test_counts_do_not_depend_on_the_number_of_threads(kind):
    x, before = torch.randn(3_000_000), torch.get_num_threads()
    states = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            states.append(build(kind))
            states[-1](x)
    finally:
        torch.set_num_threads(before)
    for state in states[1:]:
        assert torch.equal(state.histogram.slots, states[0].histogram.slots)


def test_minus_zero_counts_as_zero_whatever_came_before():
    few, many = torch.tensor([-0.0, 1.0]), torch.linspace(0.5, 1, 20_000)
    assert_same_state(*(_counting(*batches) for batches in ((few, many), (many, few))))


def _counting(*batches):
    observer = build("percentile")
    for batch in batches:
        observer(batch)
    return observer


ODD = {
    "plain": lambda x: x,
    "large and small": lambda x: x * 10.0 ** torch.randint(-30, 30, ()).item(),
    "minus zeros": lambda x: torch.where(x < 0.3, -0.0, x),
    "integral": lambda x: (x * 3).round(),
    "subnormal": lambda x: x * 1e-42,
    "zeros": torch.zeros_like,
    "constant": lambda x: torch.full_like(x, -3.3),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "int": lambda x: (x * 5).int(),
    "bool": lambda x: x > 0,
    "float64": lambda x: x.double() / 3,
    "strided": lambda x: x.flip(0).mT.contiguous().mT,
    "expanded": lambda x: x[:1].expand(x.shape),
    "empty": lambda x: x[:0],
}


@settings(max_examples=40)
@given(
    kind=st.sampled_from(OBSERVING),
    qscheme=st.sampled_from(list(SCHEMES)),
    constant=st.sampled_from([None, None, 0.3]),
    shards=st.lists(
        st.tuples(st.sampled_from(list(ODD)), st.sampled_from([1, 2, 700, 6000]), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 2**16),
)
def test_a_tree_of_merges_of_odd_shards_saved_and_copied_on_the_way_gives_the_bits_of_one(
    kind, qscheme, constant, shards, seed
):
    torch.manual_seed(seed)
    batches = [ODD[odd](torch.randn(size, 3, 2)) for odd, size, _ in shards]
    whole = build(kind, qscheme, averaging_constant=constant)
    parts = [copy.deepcopy(whole) for _ in range(4)]
    for place, (batch, (*_, owner)) in enumerate(zip(batches, shards, strict=True)):
        for observer in (whole, parts[owner]):
            observer.batch_index = place
            observer(batch)
        parts[owner] = _carried(parts[owner], place + seed)
    order = random.Random(seed)
    while len(parts) > 1:
        order.shuffle(parts)
        parts[0].merge(parts.pop())
    if whole.observed:
        assert_same_state(whole, parts[0])


def _carried(observer, how):
    """The same observer after what may happen to one between two batches."""
    if how % 4 == 0:
        observer.solve()
    elif how % 4 == 1:
        observer = pickle.loads(pickle.dumps(copy.deepcopy(observer).half()))
    elif how % 4 == 2:
        saved, observer = observer.state_dict(), copy.deepcopy(observer)
        observer.load_state_dict(saved, strict=True)
    return observer
