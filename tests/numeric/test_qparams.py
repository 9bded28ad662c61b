"""The arithmetic of qparams against exact rationals, and where torch's own kernels differ."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from quantcfg.numeric.dtypes import DTYPES
from quantcfg.numeric.ops import fake_quantize as fake_quantize_op
from quantcfg.numeric.qparams import (
    EPS,
    QSCHEMES,
    QParams,
    as_qscheme,
    choose_qparams,
    dequantize,
    fake_quantize,
    quantize,
    symmetric_range,
)
from tests.numeric import oracles

FLOAT32_MAX = float(np.finfo(np.float32).max)
grids = st.sampled_from(list(DTYPES.values()))
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def bits(values: torch.Tensor) -> list[int]:
    return values.detach().contiguous().view(torch.int32).flatten().tolist()


def qparams_of(scale: float, zero_point: int = 0) -> QParams:
    return QParams(torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32))


@settings(max_examples=500)
@given(floats, floats, grids, st.booleans())
def test_chosen_qparams_equal_exact_rationals(one, other, grid, symmetric):
    low, high = min(one, other), max(one, other)
    bounds = {"quant_min": grid.quant_min, "quant_max": grid.quant_max}
    chosen = choose_qparams(torch.tensor(low), torch.tensor(high), **bounds, symmetric=symmetric)
    scale, zero_point = oracles.choose_qparams(low, high, **bounds, symmetric=symmetric)
    assert chosen.scale.item() == scale
    assert chosen.zero_point.item() == zero_point
    assert chosen.scale.dtype == torch.float32
    assert chosen.zero_point.dtype == torch.int32


@given(st.floats(2**-6, 2.0**60, width=32), st.sampled_from([g for g in DTYPES.values() if g.signed]))
def test_a_range_around_zero_is_affine_without_an_offset(bound, grid):
    bounds = {"quant_min": grid.quant_min, "quant_max": grid.quant_max}
    range_ = torch.tensor(-bound), torch.tensor(bound)
    affine = choose_qparams(*range_, **bounds, symmetric=False)
    assert affine.zero_point.item() == 0
    assert torch.equal(affine.scale, choose_qparams(*range_, **bounds, symmetric=True).scale)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bound", [0.0, 1e-45, 1e-38, 1e-9])
def test_a_range_of_nothing_gets_the_smallest_scale(bound, symmetric):
    range_ = torch.tensor([-bound]), torch.tensor([bound])
    chosen = choose_qparams(*range_, quant_min=-128, quant_max=127, symmetric=symmetric)
    assert chosen.scale.item() == EPS == torch.finfo(torch.float32).eps
    assert chosen.zero_point.item() == (0 if symmetric else -128)


@pytest.mark.parametrize("grid", DTYPES.values(), ids=repr)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_widest_range_of_float32_has_a_finite_scale(grid, symmetric):
    chosen = choose_qparams(
        torch.tensor(-FLOAT32_MAX),
        torch.tensor(FLOAT32_MAX),
        quant_min=grid.quant_min,
        quant_max=grid.quant_max,
        symmetric=symmetric,
    )
    assert chosen.scale.isfinite().all()
    assert (1 / chosen.scale > 0).all()


def test_an_affine_range_is_widened_to_zero():
    one_sided = choose_qparams(
        torch.tensor([1.0, -4.0]), torch.tensor([4.0, -1.0]), quant_min=0, quant_max=255, symmetric=False
    )
    assert one_sided.scale.tolist() == [np.float32(4 / 255)] * 2
    assert one_sided.zero_point.tolist() == [0, 255]


def test_scalar_ranges_give_one_dimension_and_channels_keep_theirs():
    bounds = {"quant_min": -8, "quant_max": 7, "symmetric": True}
    assert choose_qparams(torch.tensor(-1.0), torch.tensor(1.0), **bounds).scale.shape == (1,)
    assert choose_qparams(-torch.ones(5), torch.ones(5), **bounds).zero_point.shape == (5,)


@settings(max_examples=300)
@given(st.floats(2**-23, 2.0**100, width=32), st.sampled_from([g for g in DTYPES.values() if g.signed]))
def test_the_symmetric_range_of_a_scale_gives_it_back_to_half_a_unit(scale, grid):
    bounds = {"quant_min": grid.quant_min, "quant_max": grid.quant_max}
    low, high = symmetric_range(torch.tensor([scale]), **bounds)
    again = choose_qparams(low, high, **bounds, symmetric=True).scale.item()
    assert again == pytest.approx(scale, rel=2**-23)


@st.composite
def quantized_values(draw):
    """A grid, its qparams and values that lie on ties, at the ends and anywhere."""
    grid = draw(grids)
    scale = draw(st.floats(2**-23, 2.0**40, width=32))
    zero_point = draw(st.integers(grid.quant_min, grid.quant_max))
    reach = grid.quant_max - grid.quant_min + 3
    halves = st.integers(-2 * reach, 2 * reach).map(lambda k: float(np.float32(k / 2 * scale)))
    special = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e30, -1e30, math.inf, -math.inf, math.nan])
    values = draw(st.lists(st.one_of(halves, floats, special), min_size=1, max_size=20))
    return grid, scale, zero_point, values


@settings(max_examples=500)
@given(quantized_values())
def test_every_path_equals_exact_rationals_to_the_bit(case):
    grid, scale, zero_point, values = case
    bounds = {"quant_min": grid.quant_min, "quant_max": grid.quant_max}
    x, qparams = torch.tensor(values), qparams_of(scale, zero_point)
    expected = [oracles.fake_quantize(value, scale, zero_point, **bounds) for value in x.tolist()]
    assert np.array_equal(fake_quantize(x, qparams, **bounds).numpy(), expected, equal_nan=True)
    fast = fake_quantize_op(x, qparams.scale, qparams.zero_point, **bounds)
    real = ~x.isnan()
    assert bits(fast[real]) == bits(torch.tensor(np.array(expected))[real])
    assert fast[~real].isnan().all()


@settings(max_examples=300)
@given(quantized_values())
def test_integers_equal_exact_rationals_and_come_back_from_their_values(case):
    grid, scale, zero_point, values = case
    bounds = {"quant_min": grid.quant_min, "quant_max": grid.quant_max}
    x = torch.tensor([value for value in values if not math.isnan(value)])
    integers = quantize(x, qparams_of(scale, zero_point), **bounds)
    assert integers.tolist() == [oracles.quantize(v, scale, zero_point, **bounds) for v in x.tolist()]
    real = dequantize(integers, qparams_of(scale, zero_point))
    assert torch.equal(quantize(real, qparams_of(scale, zero_point), **bounds), integers)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_the_zero_point_is_added_after_rounding():
    # Before it, 0.5 + 127 would go to the even 128, one step too high, as in torch.quantize_per_tensor up to
    # 2.14. ONNX, and the runtimes that execute the exported model, round 0.5 to 0 and then add 127; so does
    # torch's own fake quantize.
    x, bounds = torch.tensor([0.5, 2.5, -1.5]), {"quant_min": 0, "quant_max": 255}
    assert torch.fake_quantize_per_tensor_affine(x, 1.0, 127, 0, 255).tolist() == [0.0, 2.0, -2.0]
    assert fake_quantize(x, qparams_of(1.0, 127), **bounds).tolist() == [0.0, 2.0, -2.0]


def test_torchs_kernel_multiplies_by_the_reciprocal_and_we_must_divide():
    # For every odd k the float32 nearest to k / 2 steps is a tie or its neighbour. Where the quotient is the
    # tie, torch's x * (1 / scale) may be a unit in the last place off it and round the other way: a whole
    # step from what an exported QuantizeLinear, which divides, gives.
    scale, bounds = float(np.float32(0.3)), {"quant_min": -32768, "quant_max": 32767}
    x = torch.arange(1, 2000, 2) / 2 * torch.tensor(scale)
    ours = fake_quantize(x, qparams_of(scale), **bounds)
    theirs = torch.fake_quantize_per_tensor_affine(x, scale, 0, *bounds.values())
    expected = [oracles.fake_quantize(value, scale, 0, **bounds) for value in x.tolist()]
    assert np.array_equal(ours.numpy(), expected)
    steps_apart = ((theirs - ours) / scale).round().abs()
    assert steps_apart.max() == 1
    assert (steps_apart > 0).sum() >= 50


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions_are_computed_in_float32_and_cast_once(dtype):
    x = (torch.randn(4000) * 3).to(dtype)
    qparams = qparams_of(0.0173, -3)
    bounds = {"quant_min": -128, "quant_max": 127}
    expected = fake_quantize(x.float(), qparams, **bounds).to(dtype)
    assert torch.equal(fake_quantize(x, qparams, **bounds), expected)
    assert torch.equal(fake_quantize_op(x, *qparams, **bounds), expected)


@pytest.mark.parametrize("name", QSCHEMES)
def test_qschemes_go_by_name_and_by_value(name):
    assert (
        as_qscheme(name) is as_qscheme(f"torch.{name}") is as_qscheme(QSCHEMES[name]) is getattr(torch, name)
    )


def test_an_unknown_qscheme_is_refused_with_the_list():
    with pytest.raises(ValueError) as caught:
        as_qscheme("per_channel")
    assert str(caught.value) == (
        "qscheme must be one of per_tensor_symmetric, per_channel_symmetric, per_tensor_affine, "
        "per_channel_affine (got 'per_channel')"
    )
