"""ONNX's own data for QuantizeLinear and DequantizeLinear, and its reference evaluator on random tensors."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import dequantizelinear, quantizelinear
from onnx.reference import ReferenceEvaluator

from quantcfg.numeric.dtypes import DTYPES
from quantcfg.numeric.ops import fake_quantize as fast_fake_quantize
from quantcfg.numeric.qparams import QParams, along, dequantize, fake_quantize, quantize

GRIDS = {
    int(getattr(TensorProto, f"{'U' * unsigned}INT{bits}")): DTYPES[f"q{'u' * unsigned}int{bits}"]
    for bits in (2, 4, 8, 16)
    for unsigned in (False, True)
    if hasattr(TensorProto, f"{'U' * unsigned}INT{bits}")
}


@functools.cache
def published():
    """The node tests that the onnx package ships, as (name, node, inputs, outputs)."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (quantizelinear, dequantizelinear):
            patch.setattr(
                module,
                "expect",
                lambda node, inputs, outputs, name: found.append((name, node, inputs, outputs)),
            )
        for case in (quantizelinear.QuantizeLinear, dequantizelinear.DequantizeLinear):
            for export in (name for name in vars(case) if name.startswith("export")):
                getattr(case, export)()
    return {name: case for name, *case in found}


def on_integers(name):
    """Float8 and float4 are no integer grids; blocks inside a channel are no qscheme."""
    _, inputs, outputs = published()[name]
    tensors = [numpy_array(tensor) for tensor in (*inputs, *outputs)]
    blocked = tensors[1].size > 1 and tensors[1].ndim > 1
    return not blocked and not any(kind in name for kind in ("e4m3", "e5m2", "float4"))


def numpy_array(tensor):
    return numpy_helper.to_array(tensor) if isinstance(tensor, TensorProto) else np.asarray(tensor)


def onnx_type(tensor):
    if isinstance(tensor, TensorProto):
        return tensor.data_type
    return int(helper.np_dtype_to_tensor_dtype(np.asarray(tensor).dtype))


def as_qparams(scale, zero_point):
    scale = numpy_array(scale).astype(np.float32).reshape(-1)
    zero_point = numpy_array(zero_point).astype(np.int32).reshape(-1)
    return QParams(torch.tensor(scale), torch.tensor(np.broadcast_to(zero_point, scale.shape).copy()))


def axis_of(node, qparams):
    if qparams.scale.numel() == 1:
        return -1
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)


def test_the_published_data_is_there():
    names = {name for name in published() if on_integers(name)}
    assert len(GRIDS) >= 6
    assert names >= {
        f"test_{op}_{case}"
        for op in ("quantizelinear", "dequantizelinear")
        for case in ("axis", "uint16", "int16", "uint4", "int4")
    } | {"test_quantizelinear", "test_dequantizelinear"}


@pytest.mark.parametrize("name", [name for name in published() if on_integers(name)])
def test_published_data_of_onnx_holds(name):
    node, inputs, outputs = published()[name]
    zero_point = inputs[2] if len(inputs) > 2 else np.zeros(1, dtype=np.uint8)
    qparams = as_qparams(inputs[1], zero_point)
    axis, expected = axis_of(node, qparams), numpy_array(outputs[0])
    x = torch.tensor(numpy_array(inputs[0]).astype(np.float32))
    if node.op_type == "DequantizeLinear":
        assert np.array_equal(dequantize(x.int(), qparams, ch_axis=axis).numpy(), expected.astype(np.float32))
        return
    grid = GRIDS[onnx_type(outputs[0])]
    bounds = {"quant_min": grid.quant_min, "quant_max": grid.quant_max, "ch_axis": axis}
    assert np.array_equal(quantize(x, qparams, **bounds).numpy(), expected.astype(np.int32))
    real = dequantize(torch.tensor(expected.astype(np.int32)), qparams, ch_axis=axis)
    assert torch.equal(fake_quantize(x, qparams, **bounds), real)
    assert torch.equal(in_training(x, qparams, **bounds), real)


def in_training(x, qparams, *, quant_min, quant_max, ch_axis):
    """What a training step runs, with and without a gradient to come."""
    shaped = [along(qparam, x, ch_axis) for qparam in qparams]
    bounds = {"quant_min": quant_min, "quant_max": quant_max}
    with_gradient = fast_fake_quantize(x.clone().requires_grad_(), *shaped, **bounds).detach()
    assert torch.equal(
        with_gradient.view(torch.int32), fast_fake_quantize(x, *shaped, **bounds).view(torch.int32)
    )
    return with_gradient


def evaluate(x, scale, zero_point, kind, axis):
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
    opset = 21 if kind not in (getattr(TensorProto, "INT2", -1), getattr(TensorProto, "UINT2", -1)) else 25
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


def random_tensor(random, grid, scale, zero_point):
    """Half steps over and beyond the grid, so ties, and any value between them."""
    shape = (4, len(scale), 50)
    low, high = grid.quant_min - 4, grid.quant_max + 5
    halves = random.integers(2 * low, 2 * high, shape) / 2
    steps = np.where(random.random(shape) < 0.5, halves, random.uniform(low, high, shape))
    return np.float32((steps - zero_point[:, None]) * scale[:, None])


@pytest.mark.parametrize("kind", GRIDS, ids=lambda kind: GRIDS[kind].name)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_reference_evaluator_gives_the_same_bits(kind, per_channel, seed):
    grid, random = GRIDS[kind], np.random.default_rng(seed)
    num_channels = 6 if per_channel else 1
    scale = np.float32(2.0 ** random.uniform(-20, 10, num_channels))
    zero_point = random.integers(grid.quant_min, grid.quant_max + 1, num_channels)
    x = random_tensor(random, grid, scale, zero_point)
    constants = (scale, zero_point) if per_channel else (scale[0], zero_point[0])
    expected = evaluate(x, *map(np.asarray, constants), kind, axis=1)
    bounds = {"quant_min": grid.quant_min, "quant_max": grid.quant_max, "ch_axis": 1 if per_channel else -1}
    for function in (fake_quantize, in_training):
        result = function(torch.tensor(x), as_qparams(scale, zero_point), **bounds)
        assert np.array_equal(result.numpy().view(np.int32), expected.astype(np.float32).view(np.int32))
