"""What no observer may be upset by: odd values, odd tensors, and being asked too early."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from quantcfg.errors import NumericError
from quantcfg.numeric.observers import OBSERVERS
from quantcfg.numeric.qparams import EPS
from tests.numeric.observing import OBSERVING, SCHEMES, build

CONSTANTS = [None, 0.01]


def assert_usable(observer):
    scale, zero_point = observer.qparams()
    assert scale.isfinite().all() and (scale >= EPS).all() and (1 / scale).isfinite().all()
    assert (zero_point >= observer.quant_min).all() and (zero_point <= observer.quant_max).all()


def three_channels(row):
    return row.repeat(3, 1).T.contiguous()


FLOAT_MAX = torch.finfo(torch.float32).max
ODD_VALUES = {
    "zeros": torch.zeros(50),
    "minus zeros": -torch.zeros(50),
    "one element": torch.tensor([0.7]),
    "one negative": torch.tensor([-0.7]),
    "constant": torch.full((500,), 3.3),
    "subnormal": torch.tensor([1e-45, -3e-42, 0.0]),
    "smallest normal": torch.full((20,), torch.finfo(torch.float32).tiny),
    "huge": torch.randn(400) * 1e30,
    "float max": torch.tensor([FLOAT_MAX, -FLOAT_MAX, 1.0]),
    "both ends at once": torch.tensor([1e-38, 1e38, -1e38]),
    "all positive": torch.rand(300) + 5,
    "all negative": -torch.rand(300) - 5,
    "one outlier": torch.cat((torch.randn(999), torch.tensor([1e6]))),
    "many": torch.randn(30_000),
    "many and huge": torch.randn(30_000) * 1e37,
    "many zeros": torch.cat((torch.zeros(40_000), torch.ones(1))),
    "many equal": torch.full((40_000,), -2.5),
    "many subnormal": torch.full((40_000,), 1e-42),
}


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("values", ODD_VALUES)
@pytest.mark.parametrize("kind", OBSERVERS)
def test_odd_values_give_usable_qparams(kind, values, qscheme, constant):
    x = three_channels(ODD_VALUES[values])
    observer = build(kind, qscheme, averaging_constant=constant)
    observer(x)
    assert_usable(observer)
    observer(x)
    assert_usable(observer)


@pytest.mark.parametrize("kind", OBSERVING)
def test_a_constant_is_represented_within_half_a_step(kind):
    for qscheme in ("per_tensor_symmetric", "per_tensor_affine"):
        for value in (3.3, -0.01, 700.0):
            observer = build(kind, qscheme, **({"xmin": -1e3, "xmax": 1e3} if kind == "clip" else {}))
            observer(torch.full((100,), value))
            scale, zero_point = observer.qparams()
            step = torch.round(torch.tensor(value) / scale) + zero_point
            back = (step.clamp(-128, 127) - zero_point) * scale
            assert abs(float(back) - value) <= 0.5001 * float(scale)


@pytest.mark.parametrize("kind", OBSERVING)
def test_zero_is_exact_in_a_range_without_zero(kind):
    observer = build(kind, "per_tensor_affine", dtype="quint8", **({"xmax": 9.0} if kind == "clip" else {}))
    observer(torch.tensor([1.0, 4.0]))
    scale, zero_point = observer.qparams()
    assert zero_point.tolist() == [0]
    assert float(scale) == pytest.approx(float(observer.max_val) / 255)


# Odd tensors


@pytest.mark.parametrize("kind", OBSERVING)
@pytest.mark.parametrize("qscheme", ["per_tensor_affine", "per_channel_symmetric"])
def test_strides_make_no_difference(kind, qscheme):
    x = torch.randn(4, 3, 6, 10)
    wide = torch.zeros(4, 3, 6, 20)
    wide[..., ::2] = x
    same = [
        x.to(memory_format=torch.channels_last),
        wide[..., ::2],
        x.mT.contiguous().mT,
        x[:1].expand(4, 3, 6, 10),
    ]
    plain = [x, x, x, x[:1].repeat(4, 1, 1, 1)]
    for view, tensor in zip(same, plain, strict=True):
        one, other = build(kind, qscheme), build(kind, qscheme)
        one(view)
        other(tensor)
        a, b = one.qparams(), other.qparams()
        torch.testing.assert_close(a.scale, b.scale, rtol=1e-6 if kind == "clip_std" else 0, atol=0)
        assert torch.equal(a.zero_point, b.zero_point)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.uint8]
)
@pytest.mark.parametrize("kind", OBSERVING)
def test_other_dtypes_are_observed_as_the_numbers_they_hold(kind, dtype):
    for size in (200, 30_000):
        x = (torch.randn(size) * 30).abs().to(dtype)
        one, other = build(kind), build(kind)
        one(x)
        other(x.float())
        a, b = one.qparams().scale, other.qparams().scale
        torch.testing.assert_close(a, b, rtol=1e-6 if kind == "clip_std" else 0, atol=0)


def test_bool_is_zero_and_one():
    observer = build("min_max")
    observer(torch.tensor([True, False]))
    assert (float(observer.min_val), float(observer.max_val)) == (0.0, 1.0)


@pytest.mark.parametrize("kind", OBSERVERS)
def test_gradients_are_not_followed_and_the_tensor_is_not_changed(kind):
    x = torch.randn(40, requires_grad=True)
    before = x.detach().clone()
    observer = build(kind)
    assert observer(x) is None
    assert torch.equal(x.detach(), before) and x.grad_fn is None
    assert not any(buffer.requires_grad for buffer in observer.buffers())


@pytest.mark.parametrize("kind", OBSERVING)
def test_autocast_and_inference_mode_change_nothing(kind):
    x = torch.randn(30_000)
    plain, cast, inference = build(kind), build(kind), build(kind)
    plain(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast(x)
        cast.solve()
    with torch.inference_mode():
        inference(x)
    inference(x * 0)
    assert torch.equal(plain.qparams().scale, cast.qparams().scale)


@pytest.mark.parametrize("kind", OBSERVING)
def test_an_empty_tensor_is_no_batch(kind):
    observer = build(kind)
    observer(torch.empty(0, 7))
    assert not observer.observed and int(observer.num_batches) == 0
    observer(torch.randn(9))
    expected = copy.deepcopy(observer.state_dict())
    observer(torch.empty(0))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in observer.state_dict().items())


def test_two_to_the_24th_and_one_elements_are_all_counted():
    x = torch.zeros(2**24 + 1)
    x[-1] = 7.0
    for kind in ("min_max", "percentile", "clip_std"):
        observer = build(
            kind, averaging_constant=None, **({"percentile": 100} if kind == "percentile" else {})
        )
        observer(x)
        observer.solve()
        assert float(observer.max_val) == 7.0 or kind == "clip_std"
        assert_usable(observer)


LONG = pytest.param("kl", marks=pytest.mark.slow), pytest.param("mse", marks=pytest.mark.slow)


@pytest.mark.parametrize("kind", [*(kind for kind in OBSERVERS if kind not in ("kl", "mse")), *LONG])
def test_a_hundred_thousand_channels(kind):
    observer = OBSERVERS[kind](
        qscheme="per_channel_symmetric", ch_axis=0, num_channels=100_000, averaging_constant=1.0
    )
    observer(torch.randn(100_000, 4) * torch.rand(100_000, 1))
    assert observer.qparams().scale.shape == (100_000,)
    assert_usable(observer)


@pytest.mark.parametrize("kind", ["min_max", "percentile", "mix"])
def test_a_hundred_thousand_channels_of_a_stream(kind):
    observer = OBSERVERS[kind](
        qscheme="per_channel_symmetric", ch_axis=0, num_channels=100_000, averaging_constant=None
    )
    for _ in range(2):
        observer(torch.randn(100_000, 40) * torch.rand(100_000, 1))
    assert_usable(observer)
    assert sum(buffer.nbytes for buffer in observer.buffers()) < 275e6


@pytest.mark.parametrize("kind", OBSERVING)
@pytest.mark.parametrize("shape", [(3,), (5, 2), (5,)])
def test_a_wrong_number_of_channels_names_the_quantizer(kind, shape):
    observer = build(kind, "per_channel_affine")
    observer.name = "layer1.0.conv1.weight"
    with pytest.raises(NumericError) as caught:
        observer(torch.randn(*shape))
    text = f"layer1.0.conv1.weight: expected 3 channels along axis 1, got shape {shape}"
    assert (str(caught.value), caught.value.quantizer) == (text, "layer1.0.conv1.weight")


@pytest.mark.parametrize("x", [torch.ones(3, dtype=torch.complex64), torch.eye(3).to_sparse()])
def test_what_is_no_dense_real_tensor_is_refused(x):
    with pytest.raises(NumericError, match="cannot observe a tensor of"):
        build("min_max")(x)


# NaN and inf

BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("constant", [None, 0.0, 0.5])
@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("kind", OBSERVING)
def test_a_bad_batch_is_an_error_that_names_quantizer_and_batch_and_changes_no_range(kind, qscheme, constant):
    good = torch.randn(40, 3)
    for value in BAD:
        observer = build(kind, qscheme, averaging_constant=constant)
        observer.name = "layer1.output"
        observer(good)
        before = observer.qparams().scale.clone()
        bad = good.clone()
        bad[3, 1] = bad[7, 2] = value
        with pytest.raises(NumericError) as caught:
            observer(bad)
        assert str(caught.value) == "layer1.output: batch 1 held 2 NaN or inf of 120 values"
        assert caught.value.quantizer == "layer1.output"
        assert torch.equal(observer.qparams().scale, before)


@pytest.mark.parametrize("constant", [None, 0.0, 0.5])
@pytest.mark.parametrize("kind", OBSERVING)
def test_skipped_batches_are_counted_and_leave_no_trace(kind, constant):
    good, later = torch.randn(400), torch.randn(400) * 2
    observer = build(kind, averaging_constant=constant, nonfinite="skip")
    clean = build(kind, averaging_constant=constant)
    for value in BAD:
        observer(torch.tensor([1e9, value]))
    for batch in (good, later):
        observer(batch)
        clean(batch)
        observer(torch.tensor([value]))
    assert int(observer.skipped) == 5 and int(observer.num_batches) == 7
    assert torch.equal(observer.qparams().scale, clean.qparams().scale)
    observer.check()


@pytest.mark.parametrize("kind", OBSERVING)
def test_training_does_not_stop_at_a_bad_batch_but_check_does(kind):
    observer = build(kind)
    observer.name = "head"
    observer(torch.randn(40))
    observer.fold_batches = True
    before = observer.qparams().scale.clone()
    observer(torch.tensor([1.0, math.nan]))
    assert torch.equal(observer.qparams().scale, before)
    with pytest.raises(NumericError) as caught:
        observer.check()
    assert str(caught.value) == "head: 1 of 2 batches held NaN or inf"


@pytest.mark.parametrize("kind", OBSERVING)
def test_only_bad_batches_are_no_observation(kind):
    observer = build(kind, nonfinite="skip")
    observer(torch.tensor([math.nan]))
    assert not observer.observed
    with pytest.raises(NumericError, match="observer: never observed a batch"):
        observer.qparams()
    with pytest.raises(NumericError, match="observer: never observed a batch"):
        observer.check()


def test_float64_beyond_float32_is_not_finite():
    with pytest.raises(NumericError, match="batch 0 held 1 NaN or inf of 1 values"):
        build("min_max")(torch.tensor([1e300], dtype=torch.float64))


@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("kind", OBSERVING)
def test_qparams_before_any_batch_are_an_error(kind, qscheme):
    observer = build(kind, qscheme)
    observer.name = "stem.weight"
    with pytest.raises(NumericError) as caught:
        observer.qparams()
    assert (str(caught.value), caught.value.hint) == (
        "stem.weight: never observed a batch",
        "run calibration batches through the model",
    )


# torch.compile


@pytest.mark.parametrize("qscheme", ["per_tensor_symmetric", "per_channel_affine"])
@pytest.mark.parametrize("kind", ["min_max", "clip", "clip_std", "fixed_scale"])
def test_range_observers_compile_whole_and_once(kind, qscheme):
    observer, eager = build(kind, qscheme), build(kind, qscheme)
    observer.fold_batches = eager.fold_batches = True

    def step(x):
        observer(x)
        return observer.qparams().scale

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    for size in (8, 11, 30):
        x = torch.randn(size, 3, 5)
        scale = compiled(x)
        eager(x)
        torch.testing.assert_close(scale, eager.qparams().scale, rtol=1e-5, atol=0)
    assert counter.frame_count == 1
    compiled(torch.full((8, 3, 5), math.nan))
    assert int(observer.skipped) == (0 if kind == "fixed_scale" else 1)
    assert_usable(observer)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("kind", OBSERVERS)
def test_a_gpu_gives_the_qparams_of_the_cpu(kind, qscheme, constant):
    for size in (20, 20_000):
        host, device = (build(kind, qscheme, averaging_constant=constant) for _ in range(2))
        device.cuda()
        x = torch.randn(size, 3, 5)
        for batch in (x, x * 3):
            host(batch)
            device(batch.cuda())
        a, b = host.qparams(), device.qparams()
        torch.testing.assert_close(a.scale, b.scale.cpu(), rtol=1e-5, atol=0)
        assert torch.equal(a.zero_point, b.zero_point.cpu())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor imports parts of torch that warn
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_compiled_observer_leaves_out_what_is_not_finite(bad: float) -> None:
    """Compiled C++ may reorder arithmetic: what tells NaN apart must not be a sum or a product of it."""
    observer = OBSERVERS["min_max"](dtype="qint8")
    observer.fold_batches = True
    compiled = torch.compile(observer)
    compiled(torch.linspace(-1, 1, 8))
    before = observer.max_val.clone()

    x = torch.linspace(-2, 2, 8)
    x[3] = bad
    compiled(x)

    assert torch.equal(observer.max_val, before)
    assert (int(observer.skipped), int(observer.num_batches)) == (1, 2)


@pytest.mark.parametrize("qscheme", ["per_tensor_symmetric", "per_channel_affine"])
def test_counts_that_would_not_fit_are_refused_with_the_quantizers_name(qscheme):
    channels = {"ch_axis": 0, "num_channels": 300} if qscheme == "per_channel_affine" else {}
    observer = OBSERVERS["mse"](qscheme=qscheme, **channels)
    observer.name = "block.0.input"
    x = torch.randn(300, 4)
    observer(x)
    observer.histogram.total.fill_(2**31 - 5)
    if not channels:
        observer(x)  # int64
        return
    observer(x)
    with pytest.raises(NumericError, match=r"block\.0\.input: 2147483651 values of each of 300 channels"):
        observer(x)
    with pytest.raises(NumericError, match="too many to count"):
        observer.merge(copy.deepcopy(observer))
