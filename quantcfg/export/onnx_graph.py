"""The last steps on an ONNX graph: names that people know, and weights as the ops read them."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
from torch.export.graph_signature import TensorArgument
from torch.utils import _pytree as pytree

from quantcfg.export.program import Program

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_MOVES = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")
_PRODUCTS = ("MatMul", "Gemm")
_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")
_INT32_END = 2.0**31
_AXIS_NAMES = {0: "batch", 1: "sequence"}
_SYMBOL = re.compile(r"[A-Za-z_]\w*")


def finish(model: ir.Model, program: Program) -> None:
    """Change ``model`` in place: 4-bit constants, transposed weights, names; traces of this machine go."""
    _forget_sources(model)
    _narrow_constants(model.graph)
    _transpose_constants(model.graph)
    _name_axes(model.graph)
    _name_quantizers(model.graph, program)
    _name_outputs(model.graph, program)


def requantize_moves(graph: ir.Graph) -> None:
    """Quantize int8 values again, on their own grid, behind ops that only move them.

    This changes no value. ONNX Runtime does the same itself, and in opset 21 gives the new node a type that
    it then forgets to change to uint8, so that it refuses the file (seen in 1.32).
    """
    for node in list(graph):
        source = node.inputs[0].producer() if node.op_type in _MOVES and node.inputs[0] is not None else None
        if source is None or source.op_type != DEQUANTIZE:
            continue
        scale, zero_point = source.inputs[1], source.inputs[2]
        if scale is None or scale.shape is None or len(scale.shape) or zero_point is None:
            continue
        if zero_point.dtype is ir.DataType.INT8 and not node.outputs[0].is_graph_output():
            _requantize(graph, node, scale, zero_point)


def requantize_products(graph: ir.Graph) -> None:
    """Quantize what a matrix product reads again, on its own grid, where it was padded or joined in between.

    This changes no value, and shows that the product is one of integers. ONNX Runtime looks for a
    DequantizeLinear only behind moves; where it finds none it takes MatMulNBits, which puts the activation on
    a grid of its own for every 32 values (seen in 1.32, behind the padding and rolling of Swin's windows).
    """
    for node in list(graph):
        for value in node.inputs[:2] if node.op_type in _PRODUCTS else ():
            source = _before_moves(value)
            grid = _grid_of(source)
            if source is None or grid is None or source.op_type == DEQUANTIZE:
                continue
            if not source.outputs[0].is_graph_output():
                _requantize(graph, source, *grid)


def _before_moves(value: ir.Value | None) -> ir.Node | None:
    """The node that made the values which others only moved since."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _grid_of(node: ir.Node | None) -> tuple[ir.Value, ir.Value] | None:
    """Scale and zero point of the one grid that all values which ``node`` makes lie on, if there is one."""
    if node is None:
        return None
    if node.op_type == DEQUANTIZE:
        scale, zero_point = node.inputs[1], node.inputs[2]
        if scale is None or scale.shape is None or len(scale.shape) or zero_point is None:
            return None
        return scale, zero_point
    if node.op_type == "Pad":
        return _grid_of(_before_moves(node.inputs[0])) if _pads_with_zero(node) else None
    if node.op_type != "Concat":
        return None
    grids = {_grid_of(source) for source in {_before_moves(part) for part in node.inputs}}
    return grids.pop() if len(grids) == 1 else None


def _pads_with_zero(node: ir.Node) -> bool:
    """Whether what is added lies on every grid: zero, or copies of what is there."""
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    return fill is None or (fill.const_value is not None and not fill.const_value.numpy().any())


def _requantize(graph: ir.Graph, node: ir.Node, scale: ir.Value, zero_point: ir.Value) -> None:
    value = node.outputs[0]
    assert zero_point.dtype is not None
    quantize = ir.node(QUANTIZE, [value, scale, zero_point], name=f"{node.name}.requantized")
    dequantize = ir.node(DEQUANTIZE, [quantize.outputs[0], scale, zero_point], name=f"{node.name}.moved")
    for made, dtype in ((quantize, zero_point.dtype), (dequantize, ir.DataType.FLOAT)):
        made.outputs[0].name = made.name
        made.outputs[0].shape, made.outputs[0].type = value.shape, ir.TensorType(dtype)
    value.replace_all_uses_with(dequantize.outputs[0])
    quantize.replace_input_with(0, value)
    graph.insert_after(node, [quantize, dequantize])


def split_wide_biases(graph: ir.Graph) -> None:
    """Let a bias that int32 cannot hold in steps of its accumulator be an Add of its own.

    ONNX Runtime's optimiser rounds biases to those steps and does not look whether they fit; with 16 bits on
    both sides they often do not, and what comes out is far off (seen in 1.32).
    """
    for node in list(graph):
        bias = node.inputs[2] if node.op_type in _WITH_BIAS and len(node.inputs) > 2 else None
        if bias is not None and bias.const_value is not None and _is_wide(node, bias.const_value.numpy()):
            _split_bias(graph, node, bias)


def _is_wide(node: ir.Node, bias: np.ndarray) -> bool:
    scales = [_scale_behind(value) for value in node.inputs[:2]]
    return all(scales) and float(np.abs(bias).max(initial=0)) >= _INT32_END * float(np.prod(scales))


def _scale_behind(value: ir.Value | None) -> float:
    """The least scale of the DequantizeLinear that a value comes from; 0 where there is none."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type != DEQUANTIZE:
        value = node.inputs[0] if node.inputs else None
        node = None if value is None else value.producer()
    scale = None if node is None else node.inputs[1]
    return 0.0 if scale is None or scale.const_value is None else float(scale.const_value.numpy().min())


def _split_bias(graph: ir.Graph, node: ir.Node, bias: ir.Value) -> None:
    value, weight = node.outputs[0], node.inputs[1]
    assert bias.const_value is not None
    assert weight is not None
    assert weight.shape is not None
    spatial = 0 if node.op_type == "Gemm" else len(weight.shape) - 2
    array = bias.const_value.numpy().reshape(-1, *[1] * spatial)
    column = graph.initializers.get(name := f"{bias.name}.column") or _constant(
        array, ir.DataType.FLOAT, name
    )
    graph.register_initializer(column)
    add = ir.node("Add", [value, column], name=f"{node.name}.bias")
    add.outputs[0].shape, add.outputs[0].type = value.shape, value.type
    value.replace_all_uses_with(add.outputs[0], replace_graph_outputs=True)
    add.replace_input_with(0, value)
    add.outputs[0].name, value.name = value.name, f"{value.name}.unbiased"
    node.resize_inputs(2)
    graph.insert_after(node, [add])
    if not bias.uses():
        graph.initializers.pop(str(bias.name), None)


def _forget_sources(model: ir.Model) -> None:
    """Drop stack traces and such: they hold paths, and are most of a small file."""
    graph = model.graph
    graph.metadata_props.clear()
    graph.doc_string = None
    model.producer_name = "quantcfg"
    model.producer_version = None
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
        node.doc_string = None
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            _drop_defaults(node)
        for value in node.outputs:
            value.metadata_props.clear()


def _drop_defaults(node: ir.Node) -> None:
    scale = node.inputs[1]
    per_tensor = scale is not None and scale.shape is not None and len(scale.shape) == 0
    for name in ("output_dtype", "block_size", "saturate", *(("axis",) if per_tensor else ())):
        node.attributes.pop(name, None)


def _narrow_constants(graph: ir.Graph) -> None:
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is None or source.const_value is None:
            continue
        target = ir.DataType(node.attributes.get_int("to"))
        if target.bitwidth == 4:
            array = source.const_value.numpy().astype(target.numpy())
            _replace_by_constant(graph, node, array, target, f"{source.name}.{target.name.lower()}")


def _transpose_constants(graph: ir.Graph) -> None:
    """Store a weight as the matrix product reads it: Transpose(Dequantize(w)) is Dequantize(transposed w)."""
    for node in list(graph):
        if node.op_type != "Transpose" or node.inputs[0] is None:
            continue
        source = node.inputs[0].producer()
        if source is None or source.op_type != DEQUANTIZE or len(source.outputs[0].uses()) != 1:
            continue
        integers = source.inputs[0]
        if integers is not None and integers.const_value is not None and len(integers.uses()) == 1:
            _transpose(graph, source, node, integers)


def _transpose(graph: ir.Graph, source: ir.Node, node: ir.Node, integers: ir.Value) -> None:
    assert integers.const_value is not None
    assert integers.name is not None
    order = list(node.attributes.get_ints("perm"))
    array = np.ascontiguousarray(integers.const_value.numpy().transpose(order))
    name = integers.name
    value = _constant(array, integers.const_value.dtype, f"{name}.transposed")
    graph.register_initializer(value)
    source.replace_input_with(0, value)
    axis = source.attributes.get("axis")
    scale = source.inputs[1]
    if axis is not None and scale is not None and scale.shape is not None and len(scale.shape):
        source.attributes["axis"] = ir.AttrInt64("axis", order.index(axis.as_int()))
    result = node.outputs[0]
    source.outputs[0].shape, source.outputs[0].type = result.shape, result.type
    result.replace_all_uses_with(source.outputs[0])
    graph.remove(node, safe=True)
    del graph.initializers[name]


def _replace_by_constant(
    graph: ir.Graph, node: ir.Node, array: np.ndarray, dtype: ir.DataType, name: str
) -> None:
    value = graph.initializers.get(name)
    if value is None:
        value = _constant(array, dtype, name)
        graph.register_initializer(value)
    source = node.inputs[0]
    node.outputs[0].replace_all_uses_with(value)
    graph.remove(node, safe=True)
    if source is not None and source.name and not source.uses():
        graph.initializers.pop(source.name, None)


def _constant(array: np.ndarray, dtype: ir.DataType, name: str) -> ir.Value:
    tensor = ir.Tensor(array, dtype=dtype, name=name)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor)


def _name_axes(graph: ir.Graph) -> None:
    """Call the axes of the inputs ``batch`` and ``sequence``, and further ones by input and number."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        for axis, length in enumerate(value.shape or ()):
            if isinstance(length, ir.SymbolicDim) and length.value is not None and not _is_fixed(length):
                plain = _AXIS_NAMES.get(axis, "")
                free = plain and plain not in names.values()
                names.setdefault(str(length.value), plain if free else f"{value.name}_axis{axis}")
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None and not value.shape.frozen:
            value.shape = ir.Shape([_renamed(length, names) for length in value.shape])


def _is_fixed(length: ir.SymbolicDim) -> bool:
    """Whether torch gave a number as the name of an axis that it fixed there."""
    return str(length.value).isdigit()


def _renamed(length: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(length, int) or length.value is None:
        return length if isinstance(length, int) else None
    if _is_fixed(length):
        return int(length.value)
    return _SYMBOL.sub(lambda match: names.get(match[0], match[0]), str(length.value))


def _name_quantizers(graph: ir.Graph, program: Program) -> None:
    """Name nodes, values and constants of each quantizer after it."""
    owners = _quantizer_of_nodes(program)
    taken: set[str] = set()
    for node in graph:
        if node.op_type not in (QUANTIZE, DEQUANTIZE):
            continue
        owner = owners.get(str(node.outputs[0].name))
        if owner is None:
            continue
        kind = "quantized" if node.op_type == QUANTIZE else "dequantized"
        name = f"{owner}.{kind}"
        while name in taken:
            name += "_"
        taken.add(name)
        node.name = name
        if not node.outputs[0].is_graph_output():
            node.outputs[0].name = name
        _name_constants(node, owner, taken)


def _name_constants(node: ir.Node, owner: str, taken: set[str]) -> None:
    for value, suffix in zip(node.inputs, ("integers", "scale", "zero_point"), strict=False):
        name = f"{owner}.{suffix}"
        if value is not None and value.is_initializer() and value.name not in taken and name not in taken:
            value.name = name
            taken.add(name)


def _name_outputs(graph: ir.Graph, program: Program) -> None:
    """Call the outputs by their keys in what the model returns; a single one ``output``."""
    tree = pytree.tree_unflatten(program.results, program.structure)
    paths = [
        path for path, leaf in pytree.tree_flatten_with_path(tree)[0] if isinstance(leaf, TensorArgument)
    ]
    if len(paths) != len(graph.outputs):
        return  # a number that depends on shapes is returned as well
    taken = {value.name for value in graph.inputs}
    for value, path in zip(graph.outputs, paths, strict=True):
        keys = "_".join(re.sub(r"\W+", "", str(key)) for key in path)
        name = keys if keys and not keys[0].isdigit() else f"output_{keys}".rstrip("_")
        while name in taken:
            name += "_output"
        taken.add(name)
        value.name = name


def _quantizer_of_nodes(program: Program) -> dict[str, str]:
    """The quantizer of each node of the exported program, by the node's name."""
    return {
        node.name: str(node.kwargs["name"])
        for node in program.exported.graph.nodes
        if "quantcfg." in str(node.target)
    }
