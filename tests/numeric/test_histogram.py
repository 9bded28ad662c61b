"""The histogram of float bits: counts, growth, merging and its bounds."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from quantcfg.numeric import counting
from quantcfg.numeric.bins import choose_layout
from quantcfg.numeric.distributions import Bins, Points
from quantcfg.numeric.histogram import Histogram


def histogram_of(batches, num_channels=1, ch_axis=-1, **options):
    histogram = Histogram(num_channels, **options)
    for batch in batches:
        histogram.add(batch, ch_axis=ch_axis)
    return histogram


def assert_same(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def ends(x, ch_axis=-1):
    rows = x.reshape(1, -1) if ch_axis < 0 else x.movedim(ch_axis, 0).flatten(1)
    return rows.amin(1), rows.amax(1)


def test_a_short_stream_is_kept_value_by_value():
    histogram = histogram_of([torch.tensor([3.0, -1.0, 3.0]), torch.tensor([0.0, -0.0, -1.0])])

    points = histogram.distribution(torch.tensor([-1.0]), torch.tensor([3.0]))

    assert isinstance(points, Points)
    assert points.values.tolist() == [[-1.0, 0.0, 3.0]]
    assert points.counts.tolist() == [[2.0, 2.0, 2.0]]


def test_counts_of_a_long_stream_are_those_of_a_loop_over_its_bins():
    x = torch.randn(30_000) * torch.logspace(-6, 6, 30_000)
    histogram = histogram_of([x[:20_000], x[20_000:]])
    assert not bool(histogram.is_whole)

    bins = histogram.magnitudes(x.abs().max().reshape(1))

    assert isinstance(bins, Bins)
    expected, _ = np.histogram(x.abs().double().numpy(), np.append(bins.edges[0, :-1].numpy(), np.inf))
    assert bins.counts[0].tolist() == expected.tolist()


def test_every_value_is_counted_once_with_its_sign():
    x = torch.cat((torch.randn(40_000), torch.full((9,), 5.0), torch.full((7,), -5.0), torch.zeros(11)))
    bins = histogram_of([x]).distribution(*ends(x))
    middle = bins.edges[0, :-1] + bins.edges[0].diff() / 2
    assert bins.counts[0][middle > 0].sum() == (x > 0).sum()
    assert bins.counts[0][middle < 0].sum() == (x < 0).sum()


def test_the_ends_of_a_binned_distribution_are_those_of_the_data():
    x = torch.randn(40_000)
    bins = histogram_of([x]).distribution(*ends(x))
    torch.testing.assert_close(bins.edges[0, 0], x.min().double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(bins.edges[0, -1], x.max().double(), rtol=1e-6, atol=0)
    assert (bins.edges.diff() >= 0).all()


@pytest.mark.parametrize("value", [1.0, -1.0, 0.75, 6.0, -6.02])
def test_a_saturated_end_keeps_its_mass_at_the_end(value):
    x = torch.cat((torch.full((20_000,), value), torch.rand(20_000) * value))
    bins = histogram_of([x]).distribution(*ends(x))
    middle = bins.edges[0, :-1] + bins.edges[0].diff() / 2
    near = (middle - value).abs() <= abs(value) / 256
    assert bins.counts[0][near].sum() >= 20_000
    assert bins.counts.sum() in (x.numel(), x.numel() + 1)  # and the other end, which is next to zero


@pytest.mark.parametrize(
    "shape, ch_axis", [((50_000,), -1), ((6, 9_000), 0), ((90, 6, 100), 1), ((40, 6), 1)]
)
def test_layouts_of_memory_make_no_difference(shape, ch_axis):
    x = torch.randn(*shape)
    wide = torch.randn(*shape, 2)
    wide[..., 0] = x
    num_channels = shape[ch_axis] if ch_axis >= 0 else 1
    for same in (wide[..., 0], x.mT.contiguous().mT if x.dim() > 1 else x.flip(0)):
        assert_same(histogram_of([x], num_channels, ch_axis), histogram_of([same], num_channels, ch_axis))


def test_channels_last_equals_contiguous():
    x = torch.randn(8, 5, 40, 40)
    last = x.to(memory_format=torch.channels_last)
    assert_same(histogram_of([x]), histogram_of([last]))
    assert_same(histogram_of([x], 5, 1), histogram_of([last], 5, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions_are_counted_as_the_float32_values_they_are(dtype):
    x = torch.randn(30_000).to(dtype)
    assert_same(histogram_of([x]), histogram_of([x.float()]))


def test_one_channel_equals_no_channels_in_what_it_says():
    x = torch.randn(1, 500)
    one = histogram_of([x], 1, 0)
    assert_same(one, histogram_of([x]))


def test_each_channel_counts_as_if_it_were_alone():
    x = torch.randn(4, 20_000) * torch.tensor([1e-6, 1.0, 1e3, 1e20])[:, None]
    together = histogram_of([x], 4, 0)
    for channel in range(4):
        spread = torch.zeros_like(x)
        spread[channel] = x[channel]
        alone = histogram_of([spread], 4, 0)
        assert torch.equal(together.slots[channel], alone.slots[channel])


def test_a_jump_of_the_range_keeps_counts_exact_and_allocates_nothing():
    histogram = histogram_of([torch.randn(20_000)])
    storage, size = histogram.slots.data_ptr(), histogram.slots.numel()
    for power in (6, 12, 18, 30):
        histogram.add(torch.randn(20_000) * 10.0**power)
    assert (histogram.slots.data_ptr(), histogram.slots.numel()) == (storage, size)
    bins = histogram.magnitudes(torch.tensor([1e31]))
    assert int(bins.counts.sum()) == 5 * 20_000 == int(histogram.total)
    assert int(bins.counts[0, 0]) == 4 * 20_000  # too small to be told from 0 under the last batch


def test_counts_do_not_saturate_where_float32_would():
    histogram = Histogram()
    histogram.add(torch.ones(1).expand(2**24 + 1))
    histogram.add(torch.ones(1).expand(2**24 + 1))
    assert int(histogram.slots.max()) == 2**25 + 2


def test_the_number_of_threads_makes_no_difference():
    batches = [torch.randn(300_001), torch.randn(7, 50_000).T * 1e6]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = histogram_of(batches)
        torch.set_num_threads(3)
        assert_same(histogram_of(batches), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "num_channels, bytes_each", [(1, 123_000), (256, 67_300), (257, 33_700), (8192, 33_700), (100_000, 2800)]
)
def test_memory_per_channel_is_bounded(num_channels, bytes_each):
    with torch.device("meta"):
        histogram = Histogram(num_channels, top_bits=10)
    assert histogram.slots.nbytes <= bytes_each * num_channels
    assert histogram.shares_bins == (num_channels > 8192)


@pytest.mark.parametrize("num_channels", [1, 2, 8192])
def test_each_step_of_8_bits_has_sixteen_bins(num_channels):
    """Those of a symmetric grid over a range that fills the highest octave or just does not reach it."""
    bits = choose_layout(num_channels, 10).bits
    for octave in range(3):
        steps_per_octave = 2.0**-octave * 64
        assert 2 ** bits[octave] >= 16 * steps_per_octave
        assert 2 ** bits[octave + 1] >= 16 * steps_per_octave


def test_an_empty_distribution_of_zeros_is_points():
    points = histogram_of([torch.zeros(5)]).distribution(torch.zeros(1), torch.zeros(1))
    assert points.values.tolist() == [[0.0]] and points.counts.tolist() == [[5.0]]


SPLITS = st.lists(st.integers(0, 2), min_size=6, max_size=6)


@settings(max_examples=40)
@given(
    owner=SPLITS,
    size=st.sampled_from([3, 700, 4000, 12_000]),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_merging_in_any_order_equals_one_stream_bit_for_bit(owner, size, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    powers = torch.randint(-12, 12, (6,), generator=generator)
    batches = [torch.randn(channels, size, generator=generator) * 10.0**power for power in powers]
    ch_axis = 0 if channels > 1 else -1
    whole = histogram_of(batches, channels, ch_axis)
    parts = [
        histogram_of([b for b, o in zip(batches, owner, strict=True) if o == part], channels, ch_axis)
        for part in range(3)
    ]
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        merged = copy.deepcopy(parts[order[0]])
        for part in order[1:]:
            merged.merge(parts[part])
        assert_same(merged, whole)


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(1, 29_999), max_size=4), seed=st.integers(0, 99))
def test_the_division_into_batches_makes_no_difference(cuts, seed):
    x = torch.randn(30_000, generator=torch.Generator().manual_seed(seed)) * 100
    bounds = [0, *sorted(set(cuts)), 30_000]
    parts = [x[low:high] for low, high in itertools.pairwise(bounds)]
    assert_same(histogram_of([x]), histogram_of(parts))


def test_a_round_trip_through_state_dict_goes_on_counting():
    batches = [torch.randn(8000), torch.randn(8000) * 50, torch.randn(8000)]
    for cut in range(4):
        first = histogram_of(batches[:cut])
        second = Histogram()
        second.load_state_dict(first.state_dict(), strict=True)
        for batch in batches[cut:]:
            second.add(batch)
        assert_same(second, histogram_of(batches))


# Counting


PATHS = {
    "one value": (1, 700),
    "few values": (5, 3, 700),
    "many values": (2, 3, 40_000),
    "channels last": (9000, 20),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", PATHS.values(), ids=PATHS)
def test_channels_are_counted_on_a_device_as_on_the_host(monkeypatch, shape, dtype):
    """The way of a device is a plain function of tensors, which any device can run."""
    x = (torch.randn(shape) * torch.logspace(-30, 30, shape[1])[(..., *[None] * (len(shape) - 2))]).to(dtype)
    histogram = histogram_of([x], shape[1], 1)
    if histogram.is_whole:
        histogram._become_binned()
    monkeypatch.setattr(counting, "is_on_host", lambda x: False)
    slots = torch.zeros_like(histogram.slots)
    counting.add_counts(slots, x, 1, histogram.top, histogram.layout)
    assert torch.equal(slots, histogram.slots)


@pytest.mark.parametrize("size", [1, 5000, 200_000])
def test_a_tensor_is_counted_on_a_device_as_on_the_host(monkeypatch, size):
    x = torch.randn(size) * 10.0 ** torch.randint(-9, 9, (size,))
    histogram = histogram_of([x])
    if histogram.is_whole:
        histogram._become_binned()
    monkeypatch.setattr(counting, "is_on_host", lambda x: False)
    slots = torch.zeros_like(histogram.slots)
    counting.add_counts(slots, x, -1, histogram.top, histogram.layout)
    assert torch.equal(slots, histogram.slots)
