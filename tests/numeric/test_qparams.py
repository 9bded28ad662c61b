"""The arithmetic of qparams against exact rationals, and against ONNX's own reference."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from quantcfg.numeric.dtypes import DTYPES
from quantcfg.numeric.ops import fake_quantize as fake_quantize_op
from quantcfg.numeric.qparams import (
    EPS,
    QSCHEMES,
    QParams,
    along,
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


@settings(max_examples=500, deadline=None)
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


@settings(deadline=None)
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


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=500, deadline=None)
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


@settings(max_examples=300, deadline=None)
@given(quantized_values())
def test_integers_equal_exact_rationals_and_come_back_from_their_values(case):
    grid, scale, zero_point, values = case
    bounds = {"quant_min": grid.quant_min, "quant_max": grid.quant_max}
    x = torch.tensor([value for value in values if not math.isnan(value)])
    integers = quantize(x, qparams_of(scale, zero_point), **bounds)
    assert integers.tolist() == [oracles.quantize(v, scale, zero_point, **bounds) for v in x.tolist()]
    real = dequantize(integers, qparams_of(scale, zero_point))
    assert torch.equal(quantize(real, qparams_of(scale, zero_point), **bounds), integers)


def random_cases(count: int, seed: int) -> int:
    """Compares ``count`` random values with the rationals; returns how many there were."""
    random = np.random.default_rng(seed)
    per_grid = -(-count // len(DTYPES))
    for grid in DTYPES.values():
        bounds = {"quant_min": grid.quant_min, "quant_max": grid.quant_max}
        scale = float(np.float32(2.0 ** random.uniform(-20, 10)))
        zero_point = int(random.integers(grid.quant_min, grid.quant_max + 1))
        steps = random.uniform(grid.quant_min - 4, grid.quant_max + 4, per_grid) - zero_point
        steps[::2] = np.round(steps[::2] * 2) / 2  # half of them near ties
        x = (steps * scale).astype(np.float32)
        expected = np.array([oracles.fake_quantize(v, scale, zero_point, **bounds) for v in x.tolist()])
        result = fake_quantize_op(torch.tensor(x), *qparams_of(scale, zero_point), **bounds)
        assert np.array_equal(result.numpy().view(np.int32), expected.view(np.int32)), grid
    return per_grid * len(DTYPES)


def test_thirty_thousand_random_values_equal_the_rationals():
    assert random_cases(30_000, seed=0) >= 30_000


@pytest.mark.slow
def test_a_million_random_values_equal_the_rationals():
    assert random_cases(1_000_000, seed=1) >= 1_000_000


ONNX_TYPES = {
    "qint4": TensorProto.INT4,
    "quint4": TensorProto.UINT4,
    "qint8": TensorProto.INT8,
    "quint8": TensorProto.UINT8,
    "qint16": TensorProto.INT16,
    "quint16": TensorProto.UINT16,
}


def onnx_round_trip(
    x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, kind: int, axis: int
) -> np.ndarray:
    """QuantizeLinear then DequantizeLinear, in ONNX's reference evaluator."""
    dims = [] if scale.ndim == 0 else [len(scale)]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], axis=axis),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], axis=axis),
    ]
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, dims, scale.reshape(-1)),
        helper.make_tensor("zero_point", kind, dims, zero_point.reshape(-1)),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "round_trip", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


@pytest.mark.parametrize("name", ONNX_TYPES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_onnx_reference_gives_the_same_bits(name, per_channel):
    grid, random = DTYPES[name], np.random.default_rng(7)
    bounds = {"quant_min": grid.quant_min, "quant_max": grid.quant_max}
    num_channels = 6 if per_channel else 1
    scale = np.float32(2.0 ** random.uniform(-6, 2, num_channels))
    zero_point = random.integers(grid.quant_min, grid.quant_max + 1, num_channels)
    steps = random.integers(2 * grid.quant_min - 6, 2 * grid.quant_max + 6, (4, num_channels, 50)) / 2
    x = np.float32((steps - zero_point[:, None]) * scale[:, None])
    onnx_qparams = (scale, zero_point) if per_channel else (scale[0], zero_point[0])
    expected = onnx_round_trip(x, *map(np.asarray, onnx_qparams), ONNX_TYPES[name], axis=1)
    qparams = QParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32))
    for function in (fake_quantize, _fast):
        result = function(torch.tensor(x), qparams, **bounds, ch_axis=1 if per_channel else -1)
        assert np.array_equal(result.numpy().view(np.int32), expected.view(np.int32))


def _fast(x, qparams, *, quant_min, quant_max, ch_axis):
    scale, zero_point = (along(qparam, x, ch_axis) for qparam in qparams)
    return fake_quantize_op(x, scale, zero_point, quant_min=quant_min, quant_max=quant_max)


# The data of ONNX's own node tests: onnx/backend/test/case/node/quantizelinear.py, dequantizelinear.py.
def test_onnx_node_examples_hold():
    x = torch.tensor([0, 2, 3, 1000, -254, -1000], dtype=torch.float32)
    assert quantize(x, qparams_of(2.0, 128), quant_min=0, quant_max=255).tolist() == [
        128,
        129,
        130,
        255,
        1,
        0,
    ]
    channels = torch.tensor([[-162, 10], [-100, 232], [-20, -50]], dtype=torch.float32)
    per_axis = QParams(torch.tensor([2.0, 4.0, 5.0]), torch.tensor([84, 24, 196], dtype=torch.int32))
    expected = [[3, 89], [0, 82], [192, 186]]
    assert quantize(channels, per_axis, quant_min=0, quant_max=255, ch_axis=0).tolist() == expected
    wide = torch.tensor([0.0, -128.0, 3.0, -3.0, 2.9, -2.9, 65536.0, -65534.0, 70000.0, -70000.0])
    expected = [32767, 32703, 32769, 32765, 32768, 32766, 65535, 0, 65535, 0]
    assert quantize(wide, qparams_of(2.0, 32767), quant_min=0, quant_max=65535).tolist() == expected
    integers = torch.tensor([0, 3, 128, 255])
    assert dequantize(integers, qparams_of(2.0, 128)).tolist() == [-256.0, -250.0, 0.0, 254.0]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_torchs_integer_kernel_adds_the_zero_point_before_rounding_and_we_must_not():
    # 0.5 + 127 goes to the even 128, one step too high. ONNX, and the runtimes that execute the exported
    # model, round 0.5 to 0 and then add 127; so does torch's own fake quantize.
    x, bounds = torch.tensor([0.5, 2.5, -1.5]), {"quant_min": 0, "quant_max": 255}
    theirs = torch.quantize_per_tensor(x, 1.0, 127, torch.quint8).dequantize()
    assert theirs.tolist() == [1.0, 3.0, -1.0]
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
