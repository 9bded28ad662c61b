"""ONNX with QuantizeLinear and DequantizeLinear, written by torch's exporter with our two ops translated."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript import opset20, opset21
from torch.export import ExportedProgram

from quantcfg.errors import RunError
from quantcfg.export import external, onnx_graph
from quantcfg.export.grids import storage_named
from quantcfg.export.program import Program, quiet
from quantcfg.stages.user_code import first_line

_OPSET_OF_8_BITS = 20
_OPSET_OF_OTHER_BITS = 21  # the first one whose QuantizeLinear has 4 and 16 bits
_NODE = re.compile(r"Error when translating node %(\w+)")
_OPERATOR = re.compile(r"OpOverload\(op='([\w.]+)'")


def to_onnx(program: Program, metadata: Mapping[str, str]) -> ir.Model:
    """Translate an exported program; ``metadata`` goes into the file's properties.

    The program is changed: it returns its tensors alone.

    The opset is 20, or 21 where a quantizer has 4 or 16 bits. Not always 21: there ONNX Runtime (1.32)
    refuses what its own optimiser makes of some files; see `onnx_graph.requantize_moves`.

    Raises:
        RunError: an op has no translation.
    """
    opset = _opset(program.exported)
    program.drop_constants()
    with quiet():
        try:
            made = torch.onnx.export(
                program.exported,
                (),
                opset_version=opset,
                verbose=False,
                custom_translation_table=_translations(opset),
            )
        except (torch.onnx.errors.OnnxExporterError, ir.passes.PassError) as error:
            raise _refusal(error, program.exported) from error
    assert made is not None
    onnx_graph.finish(made.model, program)
    onnx_graph.requantize_products(made.model.graph)
    if opset == _OPSET_OF_OTHER_BITS:
        onnx_graph.requantize_moves(made.model.graph)
        onnx_graph.split_wide_biases(made.model.graph)
    made.model.metadata_props.update(metadata)
    return made.model


def write(model: ir.Model, path: Path) -> list[str]:
    """Write ``model`` to ``path``, and its data beside it where one file cannot hold it; check what is there.

    Returns:
        The names of the files, that of ``path`` last.

    Raises:
        RunError: the file is not a valid one.
    """
    names = external.write(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RunError(f"the ONNX checker refuses the file: {first_line(error)}") from error
    return names


def _opset(program: ExportedProgram) -> int:
    nodes = (node for node in program.graph.nodes if "quantcfg." in str(node.target))
    widths = {storage_named(str(node.kwargs["storage"])).num_bits for node in nodes}
    return _OPSET_OF_8_BITS if widths <= {8} else _OPSET_OF_OTHER_BITS


def _translations(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Our two ops in ONNX. The signatures are those of the ops; the exporter reads them."""
    op = {_OPSET_OF_8_BITS: opset20, _OPSET_OF_OTHER_BITS: opset21}[opset]

    def narrow(x: Any, storage: str) -> Any:
        # Torch keeps 4 bits in 8; the cast of a constant becomes a constant when the graph is finished.
        if storage_named(storage).num_bits != 4:
            return x
        return op.Cast(x, to=int(ir.DataType[storage.upper()]))

    def quantize(x: Any, scale: Any, zero_point: Any, *, axis: int, storage: str, name: str) -> Any:
        del name
        return op.QuantizeLinear(x, scale, narrow(zero_point, storage), **_axis(axis))

    def dequantize(q: Any, scale: Any, zero_point: Any, *, axis: int, storage: str, name: str) -> Any:
        del name
        return op.DequantizeLinear(narrow(q, storage), scale, narrow(zero_point, storage), **_axis(axis))

    return {
        torch.ops.quantcfg.quantize.default: quantize,
        torch.ops.quantcfg.dequantize.default: dequantize,
    }


def _axis(axis: int) -> dict[str, int]:
    return {"axis": axis} if axis >= 0 else {}


def _refusal(error: BaseException, program: ExportedProgram) -> RunError:
    """One sentence from the exporter's chain of errors: the op, and where in the model it stands."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    said = "\n".join(str(link) for link in chain)
    operator, node = _OPERATOR.search(said), _NODE.search(said)
    what = f"'{operator[1]}'" if operator else first_line(chain[-1])
    where = _site(program, node[1]) if node else ""
    return RunError(
        f"the ONNX exporter cannot express {what}{where}",
        hint="write this op with others in the model, or use --format pt2 or --format safetensors",
    )


def _site(program: ExportedProgram, name: str) -> str:
    for graph in (program.graph, program.run_decompositions().graph):
        for node in graph.nodes:
            if node.name == name:
                stack = list(node.meta.get("nn_module_stack", {}).values())
                path = str(stack[-1][0]) if stack else ""
                return f", used in '{path}'" if path else ", used in the model's own forward"
    return ""
