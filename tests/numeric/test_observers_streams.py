"""Observer state is one value: divided, merged, saved and moved at any moment, it says the same."""

from __future__ import annotations

import copy
import itertools
import pickle
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings, strategies as st

from quantcfg.errors import NumericError
from quantcfg.numeric.observers import OBSERVERS
from quantcfg.numeric.observers.exact_sum import ExactSum
from quantcfg.numeric.observers.records import capacity
from tests.numeric.observing import SCHEMES, assert_same_state, build

# None is the whole stream for every kind; with 0.3 the batches are averaged in order.
CONSTANTS = [None, 0.0, 0.3, 1.0]


def observe(observer, *batches, indices=None):
    for place, batch in enumerate(batches):
        observer.batch_index = None if indices is None else indices[place]
        observer(batch)
    return observer


def batches_of(count, *, size=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-4, 5, (count,), generator=generator)
    return [torch.randn(size, 3, 5, generator=generator) * scale for scale in scales]


def assert_same_qparams(one, other):
    a, b = one.qparams(), other.qparams()
    assert torch.equal(a.scale, b.scale) and torch.equal(a.zero_point, b.zero_point)


# Merging


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("kind", OBSERVERS)
def test_merged_observers_are_the_one_that_saw_everything(kind, qscheme, constant):
    batches = batches_of(6)
    whole = observe(build(kind, qscheme, averaging_constant=constant), *batches)
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        parts = [
            observe(build(kind, qscheme, averaging_constant=constant), *batches[k::3], indices=range(k, 6, 3))
            for k in order
        ]
        parts[0].merge(*parts[1:])
        assert_same_state(parts[0], whole)
        assert_same_qparams(parts[0], whole)


@settings(max_examples=25)
@given(
    kind=st.sampled_from([kind for kind in OBSERVERS if kind != "fixed_scale"]),
    owners=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    size=st.sampled_from([1, 40, 900]),
    seed=st.integers(0, 50),
    data=st.data(),
)
def test_any_shards_merged_in_any_order_give_the_bits_of_one(kind, owners, size, seed, data):
    batches = batches_of(7, size=size, seed=seed)
    parts = [
        observe(
            build(kind, averaging_constant=None), *(b for b, o in zip(batches, owners, strict=True) if o == k)
        )
        for k in range(4)
    ]
    while len(parts) > 1:
        first, second = data.draw(st.permutations(range(len(parts))))[:2]
        parts[first].merge(parts[second])
        del parts[second]
    whole = observe(build(kind, averaging_constant=None), *batches)
    assert_same_state(parts[0], whole)
    assert_same_qparams(parts[0], whole)


def test_an_empty_observer_merges_as_nothing():
    for kind, constant in itertools.product(OBSERVERS, CONSTANTS):
        seen = observe(build(kind, averaging_constant=constant), *batches_of(3))
        merged = copy.deepcopy(seen)
        merged.merge(build(kind, averaging_constant=constant))
        assert_same_state(merged, seen)
        other_way = build(kind, averaging_constant=constant)
        other_way.merge(seen)
        assert_same_qparams(other_way, seen)


def test_averages_beyond_the_remembered_batches_refuse_to_merge():
    first, second = build("min_max"), build("min_max")
    for place in range(capacity(1) + 1):
        observe(first, torch.randn(4), indices=[2 * place])
        observe(second, torch.randn(4), indices=[2 * place + 1])
    first.name = "layer1.conv.weight"
    with pytest.raises(NumericError) as caught:
        first.merge(second)
    assert str(caught.value) == (
        "layer1.conv.weight: cannot merge: batches to merge were folded away already; "
        "at most 1024 are remembered"
    )
    assert caught.value.hint == "merge more often, or use averaging_constant=None"


def test_the_same_range_every_time_merges_without_an_order():
    weight = torch.randn(3, 3)
    first, second = (observe(build("min_max"), *[weight] * (capacity(1) + 5)) for _ in range(2))
    first.merge(second)
    assert (first.min_val, first.max_val) == (weight.min(), weight.max())


def test_a_batch_index_seen_twice_is_an_error():
    first, second = (observe(build("min_max"), torch.randn(4)) for _ in range(2))
    with pytest.raises(NumericError, match="saw a batch of the same index; set batch_index"):
        first.merge(second)


def test_a_stream_longer_than_the_records_still_averages_and_stays_bounded():
    batches = [torch.randn(4) for _ in range(capacity(1) + 50)]
    observer = observe(build("min_max", averaging_constant=0.05), *batches)
    shapes = {name: tensor.shape for name, tensor in observer.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in build("min_max").state_dict().items()}
    average = float(batches[0].max())
    for batch in batches[1:]:
        average = float(torch.tensor(average + 0.05 * (float(batch.max()) - average)))
    assert float(observer.max_val) == average


def test_what_waits_for_its_place_is_saved_as_if_it_had_been_there_at_once():
    waiting, watched = (build("min_max") for _ in range(2))
    for place in range(capacity(1) * 5 // 4 + 2):  # the oldest quarter moves into the base twice
        batch = torch.randn(4)
        observe(waiting, batch)
        observe(watched, batch)
        watched.state_dict()
        if place % 500 == 0:
            assert_same_state(copy.deepcopy(waiting), watched)
    assert_same_state(waiting, watched)
    remembered = watched.records.index[watched.records.index >= 0]
    assert remembered.tolist() == list(range(capacity(1) // 2, capacity(1) * 5 // 4 + 2))


def test_merging_goes_on_after_a_merge():
    batches = batches_of(8)
    first = observe(build("min_max"), *batches[0:4:2], indices=[0, 2])
    second = observe(build("min_max"), *batches[1:4:2], indices=[1, 3])
    first.merge(second)
    observe(first, *batches[4:], indices=range(4, 8))
    assert_same_qparams(first, observe(build("min_max"), *batches))


def test_a_fresh_process_joins_a_loaded_range():
    loaded = build("min_max", averaging_constant=0.5)
    loaded.load_range(torch.tensor([-1.0]), torch.tensor([1.0]))
    batches = batches_of(4)
    whole = observe(copy.deepcopy(loaded), *batches)
    parts = [observe(copy.deepcopy(loaded), *batches[k::2], indices=range(k, 4, 2)) for k in range(2)]
    parts[0].merge(parts[1])
    assert_same_qparams(parts[0], whole)


def test_observers_of_other_parameters_do_not_merge():
    for other in (build("clip"), build("min_max", dtype="qint4"), build("min_max", averaging_constant=None)):
        with pytest.raises(ValueError, match="cannot merge"):
            build("min_max").merge(other)


@settings(max_examples=100)
@given(terms=st.lists(st.floats(-1e38, 1e38), max_size=12), data=st.data())
def test_an_exact_sum_has_no_order_and_the_value_of_the_rationals(terms, data):
    shuffled = data.draw(st.permutations(terms))
    one, other = ExactSum(1), ExactSum(1)
    for a, b in zip(terms, shuffled, strict=True):
        one.add(torch.tensor([a], dtype=torch.float64))
        other.add(torch.tensor([b], dtype=torch.float64))
    assert torch.equal(one.digits, other.digits)
    exact = float(sum(map(Fraction, terms), Fraction(0)))
    size = max(map(abs, terms), default=0.0)
    assert float(one.value()) == pytest.approx(exact, rel=1e-12, abs=size * 1e-12 + 2.0**-120)


# State


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("kind", OBSERVERS)
def test_state_dict_round_trips_between_any_two_batches(kind, qscheme, constant):
    batches = batches_of(4)
    whole = observe(build(kind, qscheme, averaging_constant=constant), *batches)
    for cut in range(5):
        first = observe(build(kind, qscheme, averaging_constant=constant), *batches[:cut])
        second = build(kind, qscheme, averaging_constant=constant)
        shapes = {name: tensor.shape for name, tensor in second.state_dict().items()}
        second.load_state_dict(first.state_dict(), strict=True)
        observe(second, *batches[cut:])
        assert_same_state(second, whole)
        assert_same_qparams(second, whole)
        assert shapes == {name: tensor.shape for name, tensor in second.state_dict().items()}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("kind", OBSERVERS)
def test_copies_and_pickles_go_on_by_themselves(kind, duplicate):
    batches = batches_of(4)
    original = observe(build(kind), *batches[:2])
    before = copy.deepcopy(original.state_dict())
    twin = duplicate(original)
    observe(twin, *batches[2:])
    assert_same_qparams(twin, observe(build(kind), *batches))
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("cast", [torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double])
@pytest.mark.parametrize("constant", [None, 0.3])
@pytest.mark.parametrize("kind", OBSERVERS)
def test_casting_the_model_does_not_touch_the_statistics(kind, constant, cast):
    observer = observe(build(kind, averaging_constant=constant), torch.randn(400) * 1e5)
    expected = copy.deepcopy(observer)
    cast(observer)
    assert_same_state(observer, expected)
    assert all(a.dtype == b.dtype for a, b in zip(observer.buffers(), expected.buffers(), strict=True))


# Ranges and dtypes


@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("kind", [kind for kind in OBSERVERS if kind != "fixed_scale"])
def test_a_loaded_range_gives_the_qparams_until_data_comes(kind, qscheme):
    source = observe(build("min_max", qscheme), torch.rand(50, 3, 5) - 0.3)  # clip keeps all of it
    observer = build(kind, qscheme)
    observer.load_range(source.min_val, source.max_val)
    assert observer.observed
    assert_same_qparams(observer, source)


def test_a_loaded_range_is_frozen_by_constant_zero():
    observer = build("min_max", averaging_constant=0)
    observer.load_range(torch.tensor([-2.0]), torch.tensor([3.0]))
    observe(observer, torch.randn(9) * 100)
    assert (float(observer.min_val), float(observer.max_val)) == (-2.0, 3.0)


def test_a_range_of_channels_loads_per_tensor_as_their_union_and_the_other_way_round():
    tensor, channels = build("min_max"), build("min_max", "per_channel_affine")
    tensor.load_range(torch.tensor([-1.0, -5.0, 0.0]), torch.tensor([2.0, 1.0, 4.0]))
    channels.load_range(tensor.min_val, tensor.max_val)
    assert channels.min_val.tolist() == [-5.0] * 3 and channels.max_val.tolist() == [4.0] * 3


@pytest.mark.parametrize(
    "low, high",
    [([float("nan")], [1.0]), ([-float("inf")], [1.0]), ([2.0], [1.0]), ([0.0, 0.0], [1.0, 1.0])],
)
def test_a_bad_range_is_refused(low, high):
    with pytest.raises(ValueError, match="a range to load must"):
        build("min_max", "per_channel_affine").load_range(torch.tensor(low), torch.tensor(high))


@pytest.mark.parametrize("kind", [kind for kind in OBSERVERS if kind not in ("fixed_scale", "kl")])
def test_a_new_dtype_needs_no_new_data(kind):
    batches = batches_of(2)
    narrow, wide = (observe(build(kind, dtype=dtype), *batches) for dtype in ("qint8", "qint16"))
    narrow.qparams()
    narrow.reset_dtype("qint16")
    assert_same_qparams(narrow, wide)


def test_kl_keeps_its_dtype_when_a_new_one_is_too_wide():
    observer = observe(build("kl"), torch.randn(100))
    with pytest.raises(ValueError, match="kl cannot choose a range for qint16"):
        observer.reset_dtype("qint16")
    assert str(observer.dtype) == "qint8" and observer.quant_max == 127
