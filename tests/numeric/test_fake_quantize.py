"""Fake quantize: its switches, its gradient, and qparams that survive saving, copying and casting."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from quantcfg.errors import NumericError
from quantcfg.numeric import ops, parts
from quantcfg.numeric.dtypes import DTYPES
from quantcfg.numeric.fake_quantize import FAKE_QUANTIZES, FakeQuantize
from quantcfg.numeric.observers.clip import ClipObserver
from quantcfg.numeric.observers.fixed_scale import FixedScaleObserver
from quantcfg.numeric.observers.min_max import MinMaxObserver
from quantcfg.numeric.qparams import fake_quantize
from tests.numeric import oracles
from tests.numeric.builders import KINDS, SCHEMES, build, calibrated, train

shapes = st.lists(st.integers(0, 4), min_size=2, max_size=4).map(lambda sizes: (sizes[0], 3, *sizes[1:]))


def reference(module, x):
    bounds = {"quant_min": module.quant_min, "quant_max": module.quant_max}
    return fake_quantize(x, module.qparams(), **bounds, ch_axis=module.ch_axis)


def same_bits(one, other):
    return one.dtype == other.dtype and np.array_equal(
        one.detach().float().numpy().view(np.int32), other.detach().float().numpy().view(np.int32)
    )


def test_without_switches_the_same_object_comes_back():
    module, x = build(), torch.ones(2)
    assert module(x) is x
    assert not module.observed


def test_calibration_observes_and_returns_the_same_object():
    module, x = build(), torch.tensor([-1.0, 2.0])
    module.observing = True
    assert module(x) is x
    assert module.observed
    module.finish_observation()
    assert module.qparams().scale.item() == np.float32(2 / 127.5)


def test_in_training_the_scale_of_a_step_contains_that_steps_batch():
    module, x = train(build(observer={"averaging_constant": 1.0})), torch.tensor([0.3, 1.0])
    assert torch.equal(module(x), reference(module, x))
    assert module.qparams().scale.item() == np.float32(1 / 127.5)
    module(10 * x)
    assert module.qparams().scale.item() == np.float32(10 / 127.5)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_switches_do_not_follow_train_and_eval(mode):
    module = calibrated(torch.randn(4, 3))
    getattr(module, mode)()
    x = torch.randn(4, 3)
    assert torch.equal(module(x), reference(module, x))


@pytest.mark.parametrize(("kind", "qscheme"), KINDS)
def test_every_kind_and_scheme_gives_the_reference_bits(kind, qscheme):
    x = torch.randn(5, 3, 4, 2) * torch.tensor([0.1, 1.0, 30.0]).reshape(3, 1, 1)
    module = calibrated(x, kind, qscheme)
    y = 1.3 * x
    assert same_bits(module(y), reference(module, y))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "qscheme"), [("fake_quant", s) for s in SCHEMES] + [("lsq", SCHEMES[3])])
def test_every_grid_gives_the_reference_bits(kind, qscheme, dtype):
    x = torch.randn(5, 3, 4)
    module = calibrated(x, kind, qscheme, dtype=dtype)
    assert same_bits(module(1.3 * x), reference(module, 1.3 * x))


@settings(max_examples=60)
@given(shapes, st.sampled_from(KINDS), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_any_shape_keeps_shape_and_dtype_and_equals_the_reference(shape, kind_and_scheme, dtype):
    module = calibrated(torch.randn(4, 3, 2), *kind_and_scheme)
    x = torch.randn(shape).to(dtype).requires_grad_()
    y = module(x)
    y.sum().backward()
    assert (y.shape, y.dtype, x.grad.shape) == (x.shape, dtype, x.shape)
    assert torch.equal(y, reference(module, x))


@settings(max_examples=100)
@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30), st.sampled_from(list(DTYPES)))
def test_idempotent_monotone_exact_at_zero_and_half_a_step_inside(values, dtype):
    module = calibrated(torch.tensor([-3.0, 3.0]), qscheme="per_tensor_affine", dtype=dtype)
    x = torch.tensor(sorted(values))
    y, (scale, _) = module(x), module.qparams()
    assert torch.equal(module(y), y)
    assert (y.diff() >= 0).all()
    assert module(torch.zeros(1)).item() == 0
    inside = x.abs() < 3 - scale
    rounding = 2 * torch.finfo(torch.float32).eps * x.abs()  # of the division and of the product
    assert ((y - x).abs() <= scale / 2 + rounding)[inside].all()


def test_per_channel_with_one_channel_equals_per_tensor():
    x = torch.randn(6, 1, 5)
    one = calibrated(x, qscheme="per_channel_symmetric")
    assert same_bits(one(x), calibrated(x)(x))


@pytest.mark.parametrize("power", [-4, 3])
def test_scaling_by_a_power_of_two_scales_the_result(power):
    x = torch.randn(100)
    factor = 2.0**power
    assert torch.equal(calibrated(factor * x)(factor * x), factor * calibrated(x)(x))


def test_nan_stays_nan_and_infinities_land_on_the_ends_without_gradient():
    module = calibrated(torch.tensor([-1.0, 1.0]))
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30], requires_grad=True)
    y = module(x)
    scale = module.qparams().scale
    assert y[0].isnan()
    assert torch.equal(y[1:].detach(), torch.tensor([127.0, -128.0, 127.0]) * scale)
    y.sum().backward()
    assert x.grad[1:].tolist() == [0.0, 0.0, 0.0]


def test_small_negative_values_become_plus_zero_as_from_integers():
    y = calibrated(torch.tensor([-1.0, 1.0]))(torch.tensor([-1e-9, -0.0, 0.0, -1e-45]))
    assert y.tolist() == [0.0] * 4
    assert not y.signbit().any()


@pytest.mark.parametrize("kind", FAKE_QUANTIZES)
def test_a_hundred_thousand_channels(kind):
    x = torch.randn(100_000, 4)
    module = calibrated(x, kind, "per_channel_symmetric", ch_axis=0)
    y = (1.2 * x).requires_grad_()
    module(y).sum().backward()
    assert torch.equal(module(y), reference(module, y))
    assert all(parameter.grad.shape == (100_000,) for parameter in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAKE_QUANTIZES)
def test_more_elements_than_float32_counts(kind):
    x = torch.ones(2**24 + 1)
    module = calibrated(x[:2], kind)
    y = (9 * x).requires_grad_()
    module(y).sum().backward()
    assert torch.equal(module(y), (127 * module.qparams().scale).expand_as(y))
    for parameter in module.parameters():
        per_element = 127 if kind == "lsq" else 1
        assert parameter.grad.item() == pytest.approx(per_element * y.numel(), rel=1e-6)


def test_a_scalar_stays_a_scalar():
    module = calibrated(torch.tensor([-1.0, 1.0]))
    x = torch.tensor(0.3, requires_grad=True)
    y = module(x)
    y.backward()
    assert (y.shape, x.grad.item()) == ((), 1.0)


def test_a_float_that_is_no_float_is_refused_by_name():
    module = calibrated(torch.ones(2))
    module.name = "layer1.0.add_0.output"
    with pytest.raises(NumericError) as caught:
        module(torch.ones(2, dtype=torch.int64))
    assert str(caught.value) == (
        "layer1.0.add_0.output: expected a dense tensor of 16, 32 or 64 bit floats, got torch.int64"
    )
    assert caught.value.quantizer == module.observer.name == "layer1.0.add_0.output"


@pytest.mark.parametrize("shape", [(2, 4), (3,)])
def test_other_channels_than_the_observers_are_refused(shape):
    module = calibrated(torch.randn(2, 3), qscheme="per_channel_symmetric")
    with pytest.raises(NumericError) as caught:
        module(torch.ones(shape))
    assert str(caught.value) == f"fake quantize: expected 3 channels along axis 1, got shape {shape}"


@pytest.mark.parametrize("kind", ["fake_quant", "lsq"])
def test_quantizing_without_observation_is_an_error_and_never_a_scale_of_one(kind):
    module = build(kind)
    module.name, module.quantizing = "head.input", True
    for use in (lambda: module(torch.ones(2)), module.qparams, module.finish_observation, module.value_range):
        with pytest.raises(NumericError, match=r"head\.input: never observed a batch"):
            use()
    assert module(torch.ones(0)).shape == (0,)


def test_a_first_batch_that_is_empty_does_not_set_the_qparams():
    module = train(build())
    module(torch.ones(0))
    assert not module.observed
    module(torch.tensor([2.0]))
    assert module.qparams().scale.item() == np.float32(2 / 127.5)


def away_from_ends(bounds, count):
    """Positions in steps, at least 0.1 from a tie, whose integers are not the ends of the grid."""
    low, high = bounds
    integers = np.random.default_rng(0).integers(low - 5, high + 6, count)
    integers = integers[(integers != low) & (integers != high)]
    return integers + np.random.default_rng(1).uniform(-0.4, 0.4, len(integers))


# A leaf, as weights are, is kept for backward; of another input, as activations are, one byte per element.
INPUTS = {"a leaf": lambda x: x, "no leaf": lambda x: x.view_as(x)}
inputs = pytest.mark.parametrize("used", INPUTS.values(), ids=list(INPUTS))


@inputs
@pytest.mark.parametrize("zero_point", [0, 3])
def test_gradient_equals_central_differences(used, zero_point):
    bounds, scale = (-8, 7), 0.37
    x = (away_from_ends(bounds, 60) - zero_point) * scale
    weights = np.random.default_rng(2).normal(size=x.shape)
    tensor = torch.tensor(x, requires_grad=True)
    qparams = torch.tensor([scale], dtype=torch.float64), torch.tensor([zero_point])
    result = ops.fake_quantize(used(tensor), *qparams, quant_min=bounds[0], quant_max=bounds[1])
    result.backward(torch.tensor(weights))
    expected = oracles.central_differences(
        lambda v: oracles.straight_through(v, scale, zero_point, bounds, at=(x, scale)), x, weights
    )
    np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=1e-6, atol=1e-8)
    assert 0 < (tensor.grad == 0).sum() < len(x)


@inputs
@pytest.mark.parametrize(
    ("steps", "gradient"),
    [(-8.0, 1), (-8.5, 1), (-8.501, 0), (7.0, 1), (7.499, 1), (7.5, 0), (0.5, 1), (0.0, 1), (8.0, 0)],
)
def test_gradient_at_the_break_points(used, steps, gradient):
    x = torch.tensor([steps], requires_grad=True)
    ops.fake_quantize(used(x), torch.tensor([1.0]), None, quant_min=-8, quant_max=7).backward()
    assert x.grad.item() == gradient


@inputs
@pytest.mark.parametrize("qscheme", SCHEMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_one_exactly_on_the_grid(used, qscheme, dtype):
    x = torch.randn(4, 3, 50)
    module = calibrated(x, qscheme=qscheme, dtype=dtype)
    y = (1.5 * x).requires_grad_()
    module(used(y)).sum().backward()
    scale, zero_point = (q.reshape(-1, 1) if q.numel() > 1 else q for q in module.qparams())
    integers = (y.detach() / scale).round() + zero_point
    inside = (integers >= module.quant_min) & (integers <= module.quant_max)
    assert torch.equal(y.grad, inside.float())


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "every_other": lambda x: x.repeat_interleave(2, dim=2)[:, :, ::2],
    "offset": lambda x: torch.cat([x, x])[x.shape[0] :],
}


@pytest.fixture(params=[16, parts.PART_SIZE])
def part_size(monkeypatch, request):
    monkeypatch.setattr(parts, "PART_SIZE", request.param)


@inputs
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "qscheme"), KINDS)
@pytest.mark.usefixtures("part_size")
def test_results_and_gradients_do_not_depend_on_strides(used, kind, qscheme, layout):
    x, grad = torch.randn(4, 3, 6, 5), torch.randn(4, 3, 6, 5)
    module = calibrated(0.8 * x, kind, qscheme)
    plain, laid_out = x.clone().requires_grad_(), LAYOUTS[layout](x).requires_grad_()
    module(used(plain)).backward(grad)
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    y = module(used(laid_out))
    y.backward(LAYOUTS[layout](grad))
    assert torch.equal(y, module(plain))
    assert torch.equal(laid_out.grad, plain.grad)
    for parameter, value in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "qscheme"), KINDS)
def test_expanded_inputs_and_gradients_of_stride_zero(kind, qscheme):
    x = torch.randn(1, 3, 1).requires_grad_()
    module = calibrated(torch.randn(4, 3, 2), kind, qscheme)
    module(x.expand(4, 3, 5)).sum().backward()
    wide = x.detach().expand(4, 3, 5).clone().requires_grad_()
    module(wide).sum().backward()
    torch.testing.assert_close(x.grad, wide.grad.sum((0, 2), keepdim=True))


def saved_by(module, x):
    """The tensors of more than a few elements that are kept for backward."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
        module(x)
    return [tensor for tensor in saved if tensor.numel() > 100]


@pytest.mark.parametrize("kind", ["fake_quant", "pact"])
def test_one_byte_per_element_is_kept_for_backward(kind):
    module, x = calibrated(torch.randn(1000), kind), torch.randn(1000, requires_grad=True)
    (saved,) = saved_by(module, x.view_as(x))
    assert saved.numel() * saved.element_size() == x.numel()


@pytest.mark.parametrize("kind", ["fake_quant", "lsq"])
def test_of_a_leaf_nothing_is_kept_but_itself(kind):
    module, x = calibrated(torch.randn(1000), kind), torch.randn(1000, requires_grad=True)
    (saved,) = saved_by(module, x)
    assert saved.data_ptr() == x.data_ptr()


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")  # torch 2.10 to 2.12
@pytest.mark.parametrize("kind", FAKE_QUANTIZES)
def test_without_grad_mode_nothing_is_prepared_for_backward(kind):
    module, x = calibrated(torch.randn(1000), kind), torch.randn(1000, requires_grad=True)
    with torch.no_grad(), torch.profiler.profile() as profile:
        assert not module(x).requires_grad
    assert not any(event.name == "aten::sub_" for event in profile.events())


@pytest.mark.parametrize("qscheme", ["per_tensor_affine", "per_channel_affine"])
def test_two_calls_in_one_step_do_not_disturb_each_others_backward(qscheme):
    """A weight that is used twice, observed each time: its qparams are written again before backward."""
    x = torch.randn(4, 3, 20).requires_grad_()
    module = train(build("fake_quant", qscheme, observer={"averaging_constant": 1.0}))
    first, second = module(x), module(torch.cat([100 + x, x]))
    first.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    second.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 3.0))


def test_the_input_is_never_changed():
    for kind, qscheme in KINDS:
        module, x = train(build(kind, qscheme)), torch.randn(4, 3, requires_grad=True)
        before = x.detach().clone()
        module(x).sum().backward()
        assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("kind", "qscheme"), KINDS)
def test_casting_the_model_leaves_the_qparams_alone(kind, qscheme, dtype):
    x = torch.randn(4, 3, 5) * 1e-3
    module = calibrated(x, kind, qscheme)
    scale, zero_point = (q.clone() for q in module.qparams())
    nn.ModuleList([module]).to(dtype)
    assert (module.qparams().scale.dtype, module.qparams().zero_point.dtype) == (torch.float32, torch.int32)
    assert torch.equal(module.qparams().scale, scale)
    assert torch.equal(module.qparams().zero_point, zero_point)
    assert module.observer.min_val.dtype == torch.float32
    low = x.to(dtype).requires_grad_()
    y = module(low)
    y.sum().backward()
    assert y.dtype == low.grad.dtype == dtype
    assert torch.equal(y, reference(module, low))


@inputs
@pytest.mark.parametrize("kind", FAKE_QUANTIZES)
def test_gradients_of_half_precisions_are_those_of_float32_cast_once(used, kind):
    x, grad = torch.randn(400).bfloat16(), torch.randn(400).bfloat16()
    module = calibrated(0.7 * x.float(), kind)
    half, single = x.clone().requires_grad_(), x.float().requires_grad_()
    module(used(half)).backward(grad)
    of_half = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    module(used(single)).backward(grad.float())
    assert torch.equal(half.grad, single.grad.bfloat16())
    for one, parameter in zip(of_half, module.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", FAKE_QUANTIZES)
def test_autocast_does_not_change_the_arithmetic(kind):
    x = torch.randn(100)
    module = calibrated(x, kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same_bits(module(x), reference(module, x))


def observed_by(kind, qscheme):
    module = build(kind, qscheme)
    module.observing = True
    module(torch.randn(4, 3, 2))
    return module


@pytest.mark.parametrize(("kind", "qscheme"), KINDS)
@pytest.mark.parametrize("moment", ["new", "between batches", "calibrated", "in training"])
def test_the_state_round_trips_strictly_at_any_moment(kind, qscheme, moment):
    module = build(kind, qscheme) if moment == "new" else observed_by(kind, qscheme)
    if moment in ("calibrated", "in training"):
        module.finish_observation()
    if moment == "in training":
        train(module)(torch.randn(4, 3, 2))
    twin = build(kind, qscheme)
    twin.load_state_dict(module.state_dict(), strict=True)
    assert twin.observed == module.observed
    for one in (module, twin):
        train(one)
    x = torch.randn(4, 3, 2)
    assert same_bits(module(x), twin(x))
    for key, value in module.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize(("kind", "qscheme"), KINDS)
def test_copies_behave_alike_and_are_independent(kind, qscheme, copied):
    x = torch.randn(4, 3, 2)
    module = calibrated(x, kind, qscheme)
    twin = copied(module)
    assert same_bits(module(x), twin(x))
    assert (twin.dtype, twin.qscheme, twin.quantizing) == (module.dtype, module.qscheme, True)
    before = module.qparams().scale.clone()
    train(twin).observer.averaging_constant = 1.0
    twin(100 * x)
    assert torch.equal(module.qparams().scale, before)


def test_loading_a_state_that_was_never_observed_takes_the_qparams_back():
    module = calibrated(torch.randn(4))
    module.load_state_dict(build().state_dict())
    with pytest.raises(NumericError, match="never observed"):
        module(torch.ones(2))


def test_switches_and_names_are_no_part_of_the_state():
    assert set(build().state_dict()) == {"scale", "zero_point", "has_qparams"} | {
        f"observer.{key}" for key in MinMaxObserver().state_dict()
    }


def test_recomputation_inside_backward_does_not_observe_again():
    module = train(build(observer={"averaging_constant": 0.5}))
    module(torch.tensor([1.0]))
    x = torch.tensor([3.0], requires_grad=True)
    y = checkpoint(lambda v: module(v).square(), x, use_reentrant=False)
    seen = module.observer.num_batches.clone(), module.qparams().scale.clone()
    y.backward()
    assert torch.equal(module.observer.num_batches, seen[0])
    assert torch.equal(module.qparams().scale, seen[1])


def test_a_fixed_scale_is_right_before_any_data_and_survives_training_and_loading():
    module = FakeQuantize(FixedScaleObserver(scale=1 / 128))
    assert module.observed
    train(module)(torch.randn(10) * 50)
    module.load_qparams_from(calibrated(torch.randn(10)))
    assert module.qparams().scale.item() == 1 / 128


@pytest.mark.parametrize("to", FAKE_QUANTIZES)
@pytest.mark.parametrize("start", FAKE_QUANTIZES)
@pytest.mark.parametrize("qscheme", ["per_tensor_symmetric", "per_channel_symmetric"])
def test_what_was_calibrated_is_not_lost_between_kinds(start, to, qscheme):
    x = torch.randn(8, 3, 4)
    source, target = calibrated(x, start, qscheme), build(to, qscheme)
    target.load_qparams_from(source)
    torch.testing.assert_close(target.qparams().scale, source.qparams().scale, rtol=2**-23, atol=0)
    frozen = train(target)
    frozen.observer.averaging_constant = 0.0
    frozen(100 * x)
    torch.testing.assert_close(target.qparams().scale, source.qparams().scale, rtol=2**-22, atol=0)


@pytest.mark.parametrize("start", ["fake_quant", "lsq"])
@pytest.mark.parametrize("to", ["fake_quant", "lsq"])
@pytest.mark.parametrize("qscheme", ["per_tensor_affine", "per_channel_affine"])
def test_an_affine_range_moves_to_another_grid(start, to, qscheme):
    x = torch.randn(8, 3, 4) + 0.5
    source, target = calibrated(x, start, qscheme), build(to, qscheme, dtype="quint16")
    target.load_qparams_from(source)
    ranges = [module.value_range() for module in (source, target)]
    step = source.qparams().scale
    for one, other in zip(*ranges, strict=True):
        assert ((one - other).abs() <= step).all()
    assert ((target(x) - x).abs().max(0).values.max(1).values <= step).all()


def test_a_range_per_channel_becomes_one_for_the_tensor_and_the_other_way():
    x = torch.randn(8, 3, 4) * torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1)
    per_channel, per_tensor = calibrated(x, qscheme="per_channel_symmetric"), build()
    per_tensor.load_qparams_from(per_channel)
    assert torch.equal(per_tensor.qparams().scale, per_channel.qparams().scale.max().reshape(1))
    back = build(qscheme="per_channel_symmetric")
    back.load_qparams_from(per_tensor)
    assert torch.equal(back.qparams().scale, per_tensor.qparams().scale.expand(3))


def test_a_frozen_training_scale_is_the_calibrated_one_to_the_bit():
    x = torch.randn(1000)
    source, target = calibrated(x), train(build(observer={"averaging_constant": 0.0}))
    target.load_qparams_from(source)
    for _ in range(3):
        target(torch.randn(50) * 9)
    assert torch.equal(target.qparams().scale, source.qparams().scale)


@pytest.mark.parametrize("to", FAKE_QUANTIZES)
@pytest.mark.parametrize("averaging_constant", [0.0, 0.01])
def test_a_loaded_range_is_clipped_at_once_where_the_first_batch_would_clip_it(to, averaging_constant):
    source = calibrated(torch.tensor([-5.0, 3.0]))
    clip = ClipObserver(xmin=-1.0, xmax=2.0, averaging_constant=averaging_constant)
    target = train(FAKE_QUANTIZES[to](clip))
    target.load_qparams_from(source)
    loaded = target.qparams().scale.clone()
    target(torch.tensor([-1.0, 2.0]))
    assert loaded.item() == pytest.approx(2 / 127.5, rel=2**-22)
    assert torch.equal(target.qparams().scale, loaded)


def test_a_range_that_needs_no_clipping_is_loaded_as_it_is():
    source = calibrated(torch.tensor([-0.5, 0.75]))
    target = FakeQuantize(ClipObserver())
    target.load_qparams_from(source)
    assert torch.equal(target.qparams().scale, source.qparams().scale)
    assert (target.observer.min_val.item(), target.observer.max_val.item()) == (-0.5, 0.75)


def test_another_grid_takes_the_range_and_not_the_scale():
    source, target = calibrated(torch.tensor([-2.0, 1.0])), build(dtype="qint4")
    target.load_qparams_from(source)
    assert target.qparams().scale.item() == np.float32(2 / 7.5)


def test_loading_from_one_that_never_observed_names_it():
    source = build()
    source.name = "conv1.weight"
    with pytest.raises(NumericError, match=r"conv1\.weight: never observed a batch"):
        build().load_qparams_from(source)


# The compiler uses what torch itself deprecates: it makes instances of autograd functions, and more.
compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def compiled_pair(kind, qscheme):
    torch._dynamo.reset()
    eager, other = build(kind, qscheme), build(kind, qscheme)
    return train(eager), train(other), torch.compile(other, fullgraph=True, backend="aot_eager")


@compiles
@pytest.mark.parametrize(("kind", "qscheme"), KINDS)
def test_a_training_step_compiles_whole_and_gives_the_eager_bits(kind, qscheme):
    eager, other, compiled = compiled_pair(kind, qscheme)
    for batch in (4, 6, 5):
        x, grad = torch.randn(batch, 3, 4), torch.randn(batch, 3, 4)
        one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = eager(one), compiled(two)
        y.backward(grad)
        z.backward(grad)
        assert same_bits(y, z)
        assert torch.equal(one.grad, two.grad)
    assert torch.equal(eager.qparams().scale, other.qparams().scale)


@pytest.mark.parametrize(
    ("kind", "qscheme"), [("fake_quant", SCHEMES[3]), ("lsq", SCHEMES[0]), ("pact", SCHEMES[2])]
)
def test_batches_of_other_sizes_do_not_compile_again(kind, qscheme):
    _, _, compiled = compiled_pair(kind, qscheme)
    for batch in (4, 6):
        compiled(torch.randn(batch, 3, 4, requires_grad=True)).sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (5, 7, 12):
            compiled(torch.randn(batch, 3, 4, requires_grad=True)).sum().backward()


@compiles
@pytest.mark.parametrize(("kind", "qscheme"), KINDS)
def test_an_export_holds_the_forward_alone_and_gives_its_bits(kind, qscheme):
    x = torch.randn(4, 3, 5)
    module = calibrated(x, kind, qscheme)
    program = torch.export.export(module, (x.clone().requires_grad_(),))
    assert same_bits(program.module()(1.3 * x), module(1.3 * x))
    operators = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert torch.ops.aten.round_.default in operators
    assert not any("int8" in str(node.args) for node in program.graph.nodes)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "qscheme"), KINDS)
def test_the_generated_kernels_give_the_eager_bits_in_training(kind, qscheme, dtype):
    torch._dynamo.reset()
    eager, other = train(build(kind, qscheme)), train(build(kind, qscheme))
    compiled = torch.compile(other, fullgraph=True)
    for batch in (4, 6):
        x = (3 * torch.randn(batch, 3, 37)).to(dtype)
        x[0, 0, :4] = torch.tensor([-1e-9, -0.0, 6e4, -6e4]).to(dtype)
        one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z, grad = eager(one), compiled(two), torch.randn_like(x)
        y.backward(grad)
        z.backward(grad)
        assert same_bits(y, z)
        assert torch.equal(one.grad, two.grad)
    assert torch.equal(eager.qparams().scale, other.qparams().scale)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("kind", "qscheme"), KINDS)
def test_a_gpu_gives_the_bits_of_the_cpu(kind, qscheme):
    x = torch.randn(4, 3, 64)
    module = calibrated(x, kind, qscheme)
    one, two = (1.2 * x).requires_grad_(), (1.2 * x).cuda().requires_grad_()
    module(one).sum().backward()
    y = module(one)
    z = module.cuda()(two)
    z.sum().backward()
    assert same_bits(y, z.cpu())
    assert torch.equal(one.grad, two.grad.cpu())
