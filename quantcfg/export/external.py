"""Weights beside an ONNX file that would be larger than one may be. The names are ours: ``<stem>.data``."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from quantcfg.export.files import durable

MAX_BYTES = 2**31 - 1  # of a protobuf message
_GRAPH_BYTES = 1 << 20  # at most, of what is no constant
_LEAST = 1024  # bytes of a tensor that is worth moving
_KEPT = (".scale", ".zero_point")  # whoever reads the graph alone reads its grids
_ALIGNMENT = 4096  # so that a runtime can map each tensor


def write(model: ir.Model, path: Path) -> list[str]:
    """Write ``model`` to ``path``, and its data beside it where one file cannot hold it all.

    Tensors go to the disk one by one. Those that were moved into the data file are replaced in ``model``.

    Returns:
        The names of the files, that of ``path`` last.
    """
    names = [path.name]
    if _num_bytes(model) + _GRAPH_BYTES > MAX_BYTES:
        names.insert(0, data_name_of(path.name))
        with durable(path.with_name(names[0])) as file:
            _move_data(model, file, path.with_name(names[0]))
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]  # whoever wants shapes infers them
    with durable(path) as file:
        file.write(proto.SerializeToString())
    return names


def data_name_of(name: str) -> str:
    """The name of the data that belongs to an ONNX file of that name."""
    return f"{name.removesuffix('.onnx')}.data"


def _num_bytes(model: ir.Model) -> int:
    constants = (value.const_value for value in model.graph.initializers.values())
    return sum(constant.nbytes for constant in constants if constant is not None)


def _move_data(model: ir.Model, file: BinaryIO, path: Path) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or value.shape is None or tensor.nbytes < _LEAST or name.endswith(_KEPT):
            continue
        file.write(bytes(-file.tell() % _ALIGNMENT))
        offset = file.tell()
        file.write(tensor.tobytes())
        value.const_value = ir.ExternalTensor(
            path.name, offset, tensor.nbytes, tensor.dtype,
            shape=value.shape, name=name, base_dir=path.parent,
        )  # fmt: skip
