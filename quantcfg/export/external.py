"""Weights beside an ONNX file that would be larger than one may be. The names are ours: ``<stem>.data``."""

from __future__ import annotations

import onnx

MAX_BYTES = 2**31 - 1  # of a protobuf message
_LEAST = 1024  # bytes of a tensor that is worth moving
_KEPT = (".scale", ".zero_point")  # whoever reads the graph alone reads its grids
_ALIGNMENT = 4096  # so that a runtime can map each tensor


def without_data(proto: onnx.ModelProto, name: str) -> bytes:
    """Move the large constants of ``proto`` out of it; return them, the content of the file ``name``."""
    content = bytearray()
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) < _LEAST or tensor.name.endswith(_KEPT):
            continue
        content += bytes(-len(content) % _ALIGNMENT)
        facts = {"location": name, "offset": len(content), "length": len(tensor.raw_data)}
        content += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in facts.items():
            tensor.external_data.add(key=key, value=str(value))
    return bytes(content)


def contents_of(proto: onnx.ModelProto, name: str) -> dict[str, bytes]:
    """The files that hold ``proto``, by name: ``name``, and its data where one file cannot hold it all."""
    if proto.ByteSize() <= MAX_BYTES:
        return {name: proto.SerializeToString()}
    data_name = data_name_of(name)
    data = without_data(proto, data_name)
    return {data_name: data, name: proto.SerializeToString()}


def data_name_of(name: str) -> str:
    """The name of the data that belongs to an ONNX file of that name."""
    return f"{name.removesuffix('.onnx')}.data"
