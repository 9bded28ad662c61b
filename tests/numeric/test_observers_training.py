"""Observers in training: nothing waits for the device, nothing breaks a compiled graph, no bit differs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from quantcfg.numeric.fake_quantize import FAKE_QUANTIZES
from quantcfg.numeric.observers import OBSERVERS
from tests.numeric.builders import KINDS, SCHEMES

SOLVED = ("percentile", "mse", "kl", "mix")
SIZES = {"few": 40, "many": 3000}  # values per channel are 5 times as many: kept all, or counted in bins
# Ops that fetch a value to the host, or whose result has a shape that depends on values.
WAITING = (
    *(
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "equal",
        "allclose",
        "nonzero",
        "masked_select",
        "bincount",
    ),
    *("histc", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
)


class Strict(TorchDispatchMode):
    """Fails at the first op that would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{name} waits for the device"
        masks = [a for a in _flat(args) if isinstance(a, torch.Tensor) and a.dtype == torch.bool]
        assert not (name in ("index", "index_put", "index_put_") and masks), f"{name} by a mask"
        return func(*args, **(kwargs or {}))


def _flat(args):
    for arg in args:
        yield from _flat(arg) if isinstance(arg, list | tuple) else (arg,)


def training(kind, qscheme, *, channels=3, **parameters):
    """An observer as a model in training has it."""
    axis = {"ch_axis": 1, "num_channels": channels} if "per_channel" in qscheme else {}
    observer = OBSERVERS[kind](qscheme=qscheme, **axis, **parameters)
    observer.fold_batches = True
    return observer


def batches(size, *, count=3):
    return [torch.randn(size, 3, 5) * 10.0**power for power in range(count)]


def assert_same(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("kind", OBSERVERS)
def test_a_training_step_waits_for_nothing(kind, qscheme, size):
    observer = training(kind, qscheme)
    bad = torch.full((SIZES[size], 3, 5), math.nan)
    with Strict():
        for x in (*batches(SIZES[size]), bad, bad.nan_to_num(math.inf)):
            observer(x)
            scale, _ = observer.qparams()
    assert scale.isfinite().all() and (scale > 0).all()


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize(("fake_quant", "qscheme"), KINDS)
@pytest.mark.parametrize("kind", SOLVED)
def test_a_fake_quantize_in_training_waits_for_nothing(kind, qscheme, fake_quant):
    x = torch.randn(40, 3, 5)
    module = FAKE_QUANTIZES[fake_quant](training(kind, qscheme))
    module.observing = module.quantizing = True
    module(x)  # the first batch tells that there are qparams
    with Strict():
        result = module(x * 2)
    assert result.isfinite().all()


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("state", ["counted", "solved", "loaded"])
@pytest.mark.parametrize("kind", SOLVED)
def test_a_calibrated_observer_enters_training_before_the_first_step(kind, state):
    observer = OBSERVERS[kind]()
    observer(torch.randn(500))
    if state == "solved":
        observer.solve()
    expected = copy.deepcopy(observer).qparams().scale
    if state == "loaded":
        saved, observer = observer.state_dict(), training(kind, "per_tensor_symmetric")
        observer.load_state_dict(saved)
    observer.fold_batches = True
    with Strict():
        scale, _ = observer.qparams()
        observer(torch.randn(500))
        observer.qparams()
    assert torch.equal(scale, expected)


@pytest.mark.parametrize("kind", SOLVED)
def test_training_that_is_resumed_goes_on_from_the_folded_range_and_not_from_the_calibration(kind):
    observer, resumed = OBSERVERS[kind](), OBSERVERS[kind]()
    observer(torch.randn(500))
    observer.fold_batches = True
    observer(torch.randn(500) * 9)
    resumed.load_state_dict(observer.state_dict())
    resumed.fold_batches = True
    assert torch.equal(resumed.qparams().scale, observer.qparams().scale)
    batch = torch.randn(500)
    observer(batch)
    resumed(batch)
    assert_same(resumed, observer)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("kind", OBSERVERS)
def test_shapes_do_not_depend_on_values(kind, qscheme, size):
    """No value exists here at all: whatever needed one would raise."""
    warm = training(kind, qscheme)
    warm(torch.randn(SIZES[size], 3, 5))  # tables made for real tensors must not be met by fake ones
    with FakeTensorMode():
        observer = training(kind, qscheme)
        observer(torch.empty(SIZES[size], 3, 5))
        assert observer.qparams().scale.shape == (observer.num_channels,)
    warm(torch.randn(SIZES[size], 3, 5))


def stepping(observer):
    def step(x):
        observer(x)
        return observer.qparams().scale

    return step


@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("kind", OBSERVERS)
def test_every_observer_compiles_whole_and_once(kind, qscheme):
    compiled, eager = training(kind, qscheme), training(kind, qscheme)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    step = torch.compile(stepping(compiled), backend=counter, fullgraph=True)
    for size in (8, 11, 30, 2000):
        x = torch.randn(size, 3, 5)
        torch._dynamo.mark_dynamic(x, 0)
        scale = step(x)
        assert torch.equal(scale, stepping(eager)(x))
    assert counter.frame_count == 1
    step(torch.full((8, 3, 5), math.nan))
    eager(torch.full((8, 3, 5), math.nan))
    assert_same(compiled, eager)


@pytest.mark.parametrize("kind", OBSERVERS)
def test_a_batch_of_another_size_recompiles_at_most_once(kind):
    observer = training(kind, "per_tensor_symmetric")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    step = torch.compile(stepping(observer), backend=counter, fullgraph=True)
    for size in (8, 12, 30, 9, 5000):
        step(torch.randn(size, 3, 5))
    assert counter.frame_count <= 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor imports parts of torch that warn
@pytest.mark.parametrize("qscheme", ["per_tensor_affine", "per_channel_symmetric"])
@pytest.mark.parametrize("kind", OBSERVERS)
def test_compiled_code_gives_the_bits_of_eager(kind, qscheme):
    compiled, eager = training(kind, qscheme), training(kind, qscheme)
    torch._dynamo.reset()
    step = torch.compile(stepping(compiled), fullgraph=True)
    for size in (8, 300, 4000):
        x = torch.randn(size, 3, 5) * size
        torch._dynamo.mark_dynamic(x, 0)
        scale = step(x)
        expected = stepping(eager)(x)
        if kind == "clip_std":  # its mean is a sum of floats, which compiled code adds in another order
            torch.testing.assert_close(scale, expected, rtol=1e-5, atol=0)
        else:
            assert torch.equal(scale, expected)
