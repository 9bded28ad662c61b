"""Every observer solves what it says: against slow references, over kinds, schemes and widths."""

from __future__ import annotations

import inspect
import math
from functools import partial

import pytest
import torch

from quantcfg.numeric.dtypes import DTYPES
from quantcfg.numeric.observers import OBSERVERS
from quantcfg.numeric.qparams import EPS, QSCHEMES
from tests.numeric import observer_oracles as oracles
from tests.numeric.observing import SCHEMES, SOLVED, build


def observe(observer, *batches):
    for batch in batches:
        observer(batch)
    return observer


def data(name, *shape):
    values = {
        "gaussian": torch.randn,
        "student_t": lambda *s: torch.distributions.StudentT(3.0).sample(s),
        "laplace": lambda *s: torch.distributions.Laplace(0.0, 1.0).sample(s),
        "relu": lambda *s: torch.randn(*s).relu(),
    }
    if name == "outliers":
        x = torch.randn(*shape)
        return torch.where(torch.rand(*shape) < 0.003, x * 30, x)
    return values[name](*shape)


DATA = ("gaussian", "student_t", "laplace", "relu", "outliers")


# The registry


def test_the_registry_has_the_eight_kinds_in_reading_order():
    assert list(OBSERVERS) == ["min_max", "fixed_scale", "clip", "percentile", "clip_std", "mse", "kl", "mix"]


DEFAULTS = {
    "min_max": {},
    "fixed_scale": {"zero_point": 0},
    "clip": {"xmin": -1.0, "xmax": 1.0},
    "percentile": {"percentile": 99.99, "bins": 2048},
    "clip_std": {"std_scale": 3.0},
    "mse": {"stride": 1},
    "kl": {"bins": 512, "update_interval": 1},
    "mix": {},
}
CONSTANTS = {"min_max": 0.01, "fixed_scale": 0.0, "clip": 1.0, "clip_std": 0.01}


@pytest.mark.parametrize("kind", OBSERVERS)
def test_parameters_and_defaults_are_the_references(kind):
    observer = OBSERVERS[kind]()
    assert {name: getattr(observer, name) for name in DEFAULTS[kind]} == DEFAULTS[kind]
    assert observer.averaging_constant == CONSTANTS.get(kind)
    accepted = set(inspect.signature(OBSERVERS[kind].__init__).parameters)
    assert set(DEFAULTS[kind]) <= accepted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("kind", OBSERVERS)
def test_every_kind_scheme_and_width_gives_usable_qparams(kind, qscheme, dtype):
    grid = DTYPES[dtype]
    if kind == "kl" and grid.num_bits > 9:
        with pytest.raises(ValueError, match=f"kl cannot choose a range for {dtype}"):
            build(kind, qscheme, dtype=dtype)
        return
    observer = observe(build(kind, qscheme, dtype=dtype), torch.randn(5, 3, 40), torch.randn(5, 3, 40) * 3)

    scale, zero_point = observer.qparams()

    assert scale.shape == zero_point.shape == (observer.num_channels,)
    assert (scale.dtype, zero_point.dtype) == (torch.float32, torch.int32)
    assert scale.isfinite().all() and (scale >= EPS).all()
    assert (zero_point >= grid.quant_min).all() and (zero_point <= grid.quant_max).all()
    if "symmetric" in qscheme:
        assert (zero_point == 0).all()


@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("kind", OBSERVERS)
def test_the_range_in_the_buffers_gives_the_qparams(kind, qscheme):
    observer = observe(build(kind, qscheme), torch.randn(5, 3, 40))
    scale, zero_point = observer.qparams()
    for channel in range(observer.num_channels):
        low, high = float(observer.min_val[channel]), float(observer.max_val[channel])
        expected = oracles.qparams(low, high, -128, 127, symmetric="symmetric" in qscheme)
        assert (float(scale[channel]), int(zero_point[channel])) == expected


@pytest.mark.parametrize("kind", SOLVED)
def test_a_channel_alone_gives_what_it_gives_among_others(kind):
    x = torch.stack((torch.randn(4000), torch.rand(4000) * 50, torch.randn(4000) * 1e-3), 1)
    together = observe(build(kind, "per_channel_affine"), x).qparams()
    for channel in range(3):
        others = torch.randn(4000, 3) * 7
        others[:, channel] = x[:, channel]
        alone = observe(build(kind, "per_channel_affine"), others).qparams()
        assert alone.scale[channel] == together.scale[channel]
        assert alone.zero_point[channel] == together.zero_point[channel]


# Averaging


@pytest.mark.parametrize("constant", [0.0, 0.01, 0.5, 1.0])
def test_min_max_is_the_moving_average_of_the_batches(constant):
    batches = [torch.randn(50) * (k + 1) for k in range(6)]
    observer = observe(build("min_max", averaging_constant=constant), *batches)
    assert float(observer.min_val) == oracles.moving_average([float(b.min()) for b in batches], constant)
    assert float(observer.max_val) == oracles.moving_average([float(b.max()) for b in batches], constant)


def test_constant_zero_keeps_the_first_batch_and_one_the_last():
    batches = [torch.randn(50) * (k + 1) for k in range(4)]
    first = observe(build("min_max", averaging_constant=0), *batches)
    last = observe(build("min_max", averaging_constant=1), *batches)
    assert (float(first.min_val), float(first.max_val)) == (float(batches[0].min()), float(batches[0].max()))
    assert (float(last.min_val), float(last.max_val)) == (float(batches[3].min()), float(batches[3].max()))


def test_min_max_without_a_constant_is_the_range_of_the_stream():
    batches = [torch.randn(50) * (k + 1) for k in (3, 0, 2)]
    observer = observe(build("min_max", averaging_constant=None), *batches)
    everything = torch.cat(batches)
    assert (observer.min_val, observer.max_val) == (everything.min(), everything.max())


def test_opposite_ends_of_the_floats_average_without_overflow():
    batches = (torch.tensor([-3e38, 3e38]), torch.tensor([3e38]))
    observer = observe(build("min_max", averaging_constant=0.5), *batches)
    assert (float(observer.min_val), float(observer.max_val)) == (0.0, pytest.approx(3e38))


@pytest.mark.parametrize("kind", SOLVED)
def test_a_solved_range_is_averaged_over_batches_when_a_constant_is_given(kind):
    batches = [torch.randn(500) * (k + 1) for k in range(3)]
    singles = [observe(build(kind), batch) for batch in batches]
    for single in singles:
        single.solve()
    folded = observe(build(kind, averaging_constant=0.3), *batches)
    assert float(folded.max_val) == oracles.moving_average([float(s.max_val) for s in singles], 0.3)


@pytest.mark.parametrize("kind", SOLVED)
def test_training_folds_batches_into_the_calibrated_range_with_one_hundredth(kind):
    calibration, batch = torch.randn(800), torch.randn(800) * 5
    calibrated, single = observe(build(kind), calibration), observe(build(kind), batch)
    single.solve()
    calibrated.solve()
    expected = oracles.moving_average([float(calibrated.max_val), float(single.max_val)], 0.01)

    training = observe(build(kind), calibration)
    training.fold_batches = True
    training(batch)

    assert float(training.max_val) == expected
    reloaded = build(kind)
    reloaded.load_state_dict(training.state_dict())
    assert torch.equal(reloaded.qparams().scale, training.qparams().scale)


# fixed_scale


def test_a_fixed_scale_is_given_back_whatever_the_data():
    observer = build("fixed_scale", scale=0.1)
    assert observer.observed
    observe(observer, torch.randn(9) * 1e6, torch.tensor([math.nan]))
    observer.load_range(torch.tensor([-9.0]), torch.tensor([9.0]))
    assert observer.qparams().scale.tolist() == [torch.tensor(0.1).item()]


@pytest.mark.parametrize(
    "dtype, threshold, scale", [("qint8", 1.0, 1 / 128), ("qint16", 2.0, 2 / 32768), ("quint8", 51.0, 0.2)]
)
def test_a_threshold_is_the_magnitude_that_the_grid_reaches(dtype, threshold, scale):
    assert build("fixed_scale", dtype=dtype, threshold=threshold).scale == pytest.approx(scale, rel=1e-12)


def test_a_fixed_scale_follows_its_range_to_another_dtype():
    observer = build("fixed_scale", scale=1 / 32768, dtype="qint16")
    observer.reset_dtype("qint8")
    assert observer.qparams().scale.tolist() == [1 / 128]


def test_a_fixed_zero_point_stays_with_an_affine_scheme():
    observer = build("fixed_scale", "per_tensor_affine", scale=0.5, zero_point=-3)
    assert observer.qparams().zero_point.tolist() == [-3]
    assert (float(observer.min_val), float(observer.max_val)) == (-62.5, 65.0)


# clip


def test_clip_keeps_the_folded_range_inside_its_ends():
    observer = observe(build("clip", xmin=-2.0, xmax=0.5), torch.tensor([-1.5, 3.0]))
    assert (float(observer.min_val), float(observer.max_val)) == (-1.5, 0.5)


def test_clip_feeds_the_clipped_range_to_the_next_average():
    batches = [torch.tensor([-10.0, 10.0]), torch.tensor([-0.2, 0.2])]
    observer = observe(build("clip", averaging_constant=0.5), *batches)
    assert float(observer.max_val) == pytest.approx(0.5 * (1 + 0.2))


@pytest.mark.parametrize("values, point", [([5.0, 9.0], 1.0), ([-9.0, -5.0], -1.0)])
def test_clip_of_data_outside_is_the_nearest_end(values, point):
    observer = observe(build("clip"), torch.tensor(values))
    assert (float(observer.min_val), float(observer.max_val)) == (point, point)


def test_clip_does_not_trip_over_an_empty_batch():
    observer = observe(build("clip"), torch.empty(0, 3))
    assert not observer.observed


# percentile


@pytest.mark.parametrize("percent", [0.1, 37.5, 99.0, 99.99, 100])
def test_percentile_of_a_short_stream_is_the_value_of_that_rank(percent):
    batches = [torch.randn(400), torch.randn(900) * 3]
    observer = observe(build("percentile", percentile=percent), *batches)
    observer.solve()
    everything = torch.cat(batches)
    expected = oracles.percentile(everything.numpy(), percent)
    assert float(observer.max_val) == min(expected, float(everything.max()))
    assert float(observer.min_val) == max(-expected, float(everything.min()))


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("percent", [10, 99.0, 99.9, 99.99])
def test_percentile_of_a_long_stream_is_within_a_bin(name, percent):
    batches = [data(name, 40_000), data(name, 40_000) * 2]
    observer = observe(build("percentile", percentile=percent), *batches)
    observer.solve()
    everything = torch.cat(batches)
    exact = oracles.percentile(everything.numpy(), percent)
    magnitude = max(-float(observer.min_val), float(observer.max_val))
    bound = min(exact / 128, float(everything.abs().max()) / 2048)
    assert abs(magnitude - exact) <= bound or (exact == 0 and magnitude < 1e-9)


@pytest.mark.parametrize("size", [100, 50_000])
def test_percentile_100_is_min_max(size):
    x = torch.randn(size)
    observer = observe(build("percentile", percentile=100), x)
    observer.solve()
    assert (observer.min_val, observer.max_val) == (x.min(), x.max())


def test_a_percentage_is_taken_as_it_is_written():
    x = torch.arange(1, 10_001).float()
    observer = observe(build("percentile", percentile=99.99), x)
    observer.solve()
    assert float(observer.max_val) == 9999.0


# clip_std


@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("constant", [None, 1.0])
def test_clip_std_is_mean_and_deviation_of_the_stream(qscheme, constant):
    batches = [torch.randn(60, 3, 40) * 2 + 1, torch.randn(30, 3, 40) - 4]
    observer = observe(build("clip_std", qscheme, std_scale=1.5, averaging_constant=constant), *batches)
    observer.solve()
    seen = torch.cat(batches) if constant is None else batches[-1]
    rows = seen.movedim(1, 0).flatten(1) if observer.per_channel else seen.reshape(1, -1)
    std, mean = torch.std_mean(rows.double(), 1)
    torch.testing.assert_close(observer.min_val.double(), mean - 1.5 * std, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(observer.max_val.double(), mean + 1.5 * std, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("constant", [None, 0.01])
def test_clip_std_of_one_element_is_that_element(constant):
    observer = observe(build("clip_std", averaging_constant=constant), torch.tensor([-7.25]))
    observer.solve()
    assert (float(observer.min_val), float(observer.max_val)) == (-7.25, -7.25)


@pytest.mark.parametrize("shift", [0.0, 1e4, -3e30])
def test_clip_std_keeps_its_digits_far_from_zero_and_near_the_largest_float(shift):
    x = torch.randn(10_000) * max(1.0, abs(shift) / 100) + shift
    observer = observe(build("clip_std", averaging_constant=1.0), x)
    std = x.double().std()
    reach = float(observer.max_val) - float(observer.min_val)
    assert reach == pytest.approx(6 * float(std), rel=1e-3)


# mse


@pytest.mark.parametrize("dtype", ["qint2", "qint4", "qint8", "quint8", "qint16"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", DATA)
def test_mse_is_within_half_a_percent_of_an_exhaustive_search(name, symmetric, dtype):
    batches = [data(name, 60_000), data(name, 60_000)]
    assert_mse_is_best(batches, "affine" if not symmetric else "symmetric", dtype)


@pytest.mark.parametrize("size", [1, 9, 64, 576, 4608])
@pytest.mark.parametrize("name", ["gaussian", "student_t", "relu"])
def test_mse_of_a_short_stream_is_within_half_a_percent(name, size):
    assert_mse_is_best([data(name, size)], "symmetric", "qint8")


def assert_mse_is_best(batches, scheme, dtype, **parameters):
    observer = observe(build("mse", f"per_tensor_{scheme}", dtype=dtype, **parameters), *batches)
    scale, zero_point = observer.qparams()
    everything, grid = torch.cat(batches).numpy(), (DTYPES[dtype].quant_min, DTYPES[dtype].quant_max)
    found = oracles.squared_error(everything, float(scale), int(zero_point), *grid)
    best = oracles.least_error(everything, grid, symmetric=scheme == "symmetric")
    assert found <= 1.005 * best + 1e-12


@pytest.mark.parametrize("stride", [1, 2, 3, 7, 10, 20, 95])
@pytest.mark.parametrize("size", [2000, 60_000])
def test_mse_does_not_depend_on_the_stride(stride, size):
    x = data("student_t", size)
    assert_mse_is_best([x], "symmetric", "qint8", stride=stride)


@pytest.mark.parametrize("size", [128, 4608, 20_000])
def test_mse_searches_each_channel_by_itself(size):
    x = torch.stack((data("gaussian", size), data("student_t", size) * 100, data("relu", size) * 1e-3))
    observer = OBSERVERS["mse"](qscheme="per_channel_symmetric", ch_axis=0, num_channels=3)
    scale, zero_point = observe(observer, x).qparams()
    for channel in range(3):
        row = x[channel].numpy()
        found = oracles.squared_error(row, float(scale[channel]), int(zero_point[channel]), -128, 127)
        assert found <= 1.005 * oracles.least_error(row, (-128, 127), symmetric=True)


def assert_channels_are_best(observer, x, channels):
    """Each of ``channels`` within half a percent of its own exhaustive search; ``x`` is ``(C, V)``."""
    scale, zero_point = observer.qparams()
    grid = (observer.quant_min, observer.quant_max)
    for channel in channels:
        row = x[channel].numpy()
        found = oracles.squared_error(row, float(scale[channel]), int(zero_point[channel]), *grid)
        best = oracles.least_error(row, grid, symmetric=observer.symmetric)
        assert found <= 1.005 * best + 1e-12, (channel, found / best)


def many_channels(count, size):
    rows = [data(DATA[place % len(DATA)], size) * 10.0 ** (place % 7 - 3) for place in range(2 * len(DATA))]
    return torch.stack(rows).repeat(-(-count // len(rows)), 1)[:count]


@pytest.mark.parametrize(
    "count, size",
    [(600, 5000), (9000, 300), pytest.param(100_000, 64, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("qscheme", ["per_channel_symmetric", "per_channel_affine"])
def test_mse_of_a_weight_is_within_half_a_percent_for_any_number_of_channels(count, size, qscheme):
    x = many_channels(count, size)
    observer = OBSERVERS["mse"](qscheme=qscheme, ch_axis=0, num_channels=count)
    observer(x)
    assert_channels_are_best(observer, x, range(count - 10, count))


def assert_a_stream_is_near(rows, dtype, qscheme, count, *, num_batches):
    """``rows``, ``(R, V)``, seen in some batches, again and again until there are ``count`` channels."""
    observer = OBSERVERS["mse"](qscheme=qscheme, dtype=dtype, ch_axis=0, num_channels=count)
    batches = rows.tensor_split(num_batches, 1)
    observe(observer, *(batch.repeat(-(-count // len(rows)), 1)[:count] for batch in batches))
    assert_channels_are_best(observer, rows, range(len(rows)))
    return observer


@pytest.mark.parametrize("count, size, num_batches", [(8, 9000, 2), (300, 4600, 3), (8, 30_000, 4)])
@pytest.mark.parametrize("qscheme", ["per_channel_symmetric", "per_channel_affine"])
@pytest.mark.parametrize("dtype", ["qint4", "quint8"])
def test_mse_of_a_stream_of_channels_is_within_half_a_percent(dtype, qscheme, count, size, num_batches):
    size *= 1 + (qscheme == "per_channel_affine")  # which keeps almost twice as many values one by one
    rows = torch.stack([data(name, size) * 2.3**place for place, name in enumerate(DATA)])
    observer = assert_a_stream_is_near(rows, dtype, qscheme, count, num_batches=num_batches)
    assert not observer.histogram.is_whole


SHAPES = {
    **{name: partial(data, name) for name in DATA},
    "uniform": torch.rand,
    "gelu": lambda *shape: torch.nn.functional.gelu(2 * torch.randn(*shape)),
    "log_normal": lambda *shape: torch.randn(*shape).mul(1.5).exp(),
    "two_modes": lambda *shape: torch.randn(*shape) * 0.1 + torch.where(torch.rand(*shape) < 0.5, 3.0, -1.0),
    "three_outliers": lambda *shape: torch.cat((torch.randn(*shape), torch.randn(shape[0], 3) * 30), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [4300, 9000, 30_000])
@pytest.mark.parametrize("qscheme", ["per_channel_symmetric", "per_channel_affine"])
@pytest.mark.parametrize("dtype", ["qint4", "qint8"])
@pytest.mark.parametrize("name", SHAPES)
def test_mse_of_a_long_stream_is_within_half_a_percent_whatever_its_shape(name, dtype, qscheme, size):
    """With as few values as are not kept one by one, and with ends at any place between powers of two."""
    size *= 1 + (qscheme == "per_channel_affine")
    rows = SHAPES[name](16, size) * torch.exp2(torch.rand(16, 1))
    assert_a_stream_is_near(rows, dtype, qscheme, 300, num_batches=5)


def test_a_weight_keeps_its_range_through_a_state_dict_and_a_merge_with_nothing():
    x = many_channels(9000, 300)
    first, second, third = (
        OBSERVERS["mse"](qscheme="per_channel_symmetric", ch_axis=0, num_channels=9000) for _ in range(3)
    )
    first(x)
    second.load_state_dict(first.state_dict())
    third.merge(first)
    for other in (second, third):
        assert torch.equal(other.qparams().scale, first.qparams().scale)


# kl


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("dtype", ["qint4", "qint8"])
def test_kl_of_a_short_stream_is_the_textbooks(name, dtype):
    x = data(name, 3000)
    observer = observe(build("kl", dtype=dtype), x)
    observer.solve()
    threshold = oracles.kl_threshold(x.numpy(), 512, 2 ** (DTYPES[dtype].num_bits - 1))
    expected = min(torch.tensor(threshold).float(), x.max())
    torch.testing.assert_close(observer.max_val[0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", DATA)
def test_kl_of_a_long_stream_is_as_good_as_the_textbooks(name):
    x = data(name, 60_000)
    observer = observe(build("kl"), x)
    observer.solve()
    curve = oracles.kl_curve(x.numpy(), 512, 128)
    magnitude = max(-float(observer.min_val), float(observer.max_val))
    place = round(magnitude / float(x.abs().max()) * 512) - 128
    assert curve[place] <= 1.05 * min(curve)


@pytest.mark.parametrize("size", [4000, 60_000])
def test_kl_can_keep_the_whole_range(size):
    x = torch.linspace(-1, 1, size)
    observer = observe(build("kl"), x)
    observer.solve()
    assert float(observer.max_val) == 1.0


@pytest.mark.parametrize("interval", [1, 7, 10_000])
def test_no_update_interval_leaves_kl_without_a_range(interval):
    observer = observe(build("kl", update_interval=interval), torch.randn(100))
    assert observer.observed and float(observer.qparams().scale) > EPS


# mix


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("size", [3000, 60_000])
def test_mix_keeps_the_best_of_its_candidates(name, size):
    x = data(name, size)
    observer = observe(build("mix", dtype="qint4"), x)
    scale, _ = observer.qparams()
    found = oracles.squared_error(x.numpy(), float(scale), 0, -8, 7)
    candidates = [99.9, 99.95, 99.99, 99.993, 99.995, 99.997, 99.999, 99.9995, 99.9999]
    errors = []
    for percent in candidates:
        threshold = oracles.percentile(x.numpy(), percent)
        low, high = max(float(x.min()), -threshold), min(float(x.max()), threshold)
        errors.append(oracles.range_error(x.numpy(), low, high, (-8, 7), symmetric=True))
    assert found <= 1.005 * min(errors)


# Parameters that are refused

REFUSED = [
    ("min_max", {"averaging_constant": 1.5}, "averaging_constant must be in [0, 1] (got 1.5)"),
    ("min_max", {"nonfinite": "ignore"}, "nonfinite must be 'error' or 'skip' (got 'ignore')"),
    (
        "min_max",
        {"qscheme": "per_channel_affine"},
        "qscheme 'per_channel_affine' needs ch_axis >= 0 (got -1)",
    ),
    (
        "min_max",
        {"ch_axis": 0},
        "ch_axis and num_channels have no meaning with qscheme 'per_tensor_symmetric' (got 0 and 1)",
    ),
    ("min_max", {"num_channels": 0}, "num_channels must be at least 1 (got 0)"),
    ("fixed_scale", {"scale": 0.0}, f"scale must be finite and at least {EPS} (got 0.0)"),
    ("fixed_scale", {"scale": 1.0, "threshold": 2.0}, "give scale or threshold, not both (got 1.0 and 2.0)"),
    ("fixed_scale", {"zero_point": 1}, "zero_point must be 0 with a symmetric qscheme (got 1)"),
    (
        "fixed_scale",
        {"zero_point": 200, "qscheme": "per_tensor_affine"},
        "zero_point must lie on the grid [-128, 127] (got 200)",
    ),
    ("clip", {"xmin": 2.0}, "xmin and xmax must be finite with xmin <= xmax (got 2.0 and 1.0)"),
    ("percentile", {"percentile": 0}, "percentile must be in (0, 100] (got 0)"),
    ("percentile", {"bins": 8}, "bins must be in [16, 4096] (got 8)"),
    ("clip_std", {"std_scale": 0.0}, "std_scale must be above 0 (got 0.0)"),
    ("mse", {"stride": 0}, "stride must be in [1, 95] (got 0)"),
    ("kl", {"bins": 100}, "bins must be in [256, 8192] (got 100)"),
    ("kl", {"update_interval": 0}, "update_interval must be at least 1 (got 0)"),
    (
        "kl",
        {"dtype": "qint16"},
        "kl cannot choose a range for qint16: 512 bins do not tell its levels apart; "
        "use mse, or at least 65536 bins",
    ),
]


@pytest.mark.parametrize("kind, parameters, text", REFUSED)
def test_a_bad_parameter_is_refused_with_its_value(kind, parameters, text):
    with pytest.raises(ValueError) as caught:
        OBSERVERS[kind](**parameters)
    assert str(caught.value) == text


def test_all_four_schemes_are_covered_here():
    assert set(SCHEMES) == set(QSCHEMES)
