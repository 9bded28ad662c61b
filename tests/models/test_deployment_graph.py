"""Where our quantizers stand, beside where ONNX Runtime's own static quantization puts Q and DQ pairs.

Both files come from one exporter: without its pairs each is the float graph, and nodes are compared one by
one. A chain (a convolution with what follows it at once) is one op, and moved values stay on their grid.
"""

from __future__ import annotations

import copy
import difflib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import quantcfg as qc
from quantcfg.export import onnx_file
from quantcfg.export.calls import Call, varying_axes
from quantcfg.export.deployed import deployed
from quantcfg.export.freeze import freeze
from quantcfg.export.ops import SINGLE
from quantcfg.export.program import export_program
from quantcfg.stages.progress import Silence

onnx = pytest.importorskip("onnx", reason="needs onnx")
quantization = pytest.importorskip("onnxruntime.quantization", reason="needs onnxruntime")
pytestmark = pytest.mark.slow

PAIR = ("QuantizeLinear", "DequantizeLinear")
MOVES = ("Reshape", "Transpose", "MaxPool", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand",
         "Identity", "Pad", "Gather", "Relu", "Clip", "Concat")  # fmt: skip
_ENDS = ("Relu", "Clip")
FOLLOWERS = {"Add": _ENDS, **dict.fromkeys(("Conv", "Gemm", "MatMul"), ("Add", *_ENDS))}

Inputs = dict[str, Tensor]


class Placed(NamedTuple):
    """A node: its op, its arguments (X, x: a value on a grid or not; W, w: a constant), its result (Q, f)."""

    op: str
    arguments: str
    result: str


class Graph:
    """An ONNX graph, seen through its Q and DQ pairs."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path, load_external_data=False).graph
        self.nodes = [node for node in graph.node if node.op_type != "Constant"]
        self.makers = {name: node for node in graph.node for name in node.output}
        self.stored = {tensor.name for tensor in graph.initializer}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def placed(self) -> Iterator[Placed]:
        """Every op on a value; those that only move it are seen in what they hand on."""
        for node in self.nodes:
            if node.op_type not in PAIR and not all(map(self._is_constant, node.output)):
                result = "Q" if self._ends_on_grid(node) else "f"
                yield Placed(node.op_type, "".join(self._argument(name, node) for name in node.input), result)

    def _argument(self, name: str, node: Any) -> str:
        if self._is_constant(name):
            return "W" if self._on_grid(name) else "w"
        return "X" if self._on_grid(name) or self._is_inside_chain(name, node) else "x"

    def _is_constant(self, name: str) -> bool:
        maker = self.makers.get(name)
        if maker is None:
            return name in self.stored
        return maker.op_type == "Constant" or (
            bool(maker.input) and all(self._is_constant(argument) for argument in maker.input if argument)
        )

    def _on_grid(self, name: str) -> bool:
        maker = self.makers.get(name)
        if maker is None:
            return False
        return maker.op_type in PAIR or (maker.op_type in MOVES and self._on_grid(maker.input[0]))

    def _only_reader(self, node: Any) -> Any:
        readers = self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 else None

    def _is_inside_chain(self, name: str, node: Any) -> bool:
        maker = self.makers.get(name)
        if maker is None or node.op_type not in FOLLOWERS.get(maker.op_type, ()):
            return False
        return self._only_reader(maker) is node and self._ends_on_grid(node)

    def _ends_on_grid(self, node: Any) -> bool:
        if any(reader.op_type in PAIR for reader in self.readers.get(node.output[0], ())):
            return True
        if node.op_type in MOVES and self._on_grid(node.input[0]):
            return True
        reader = self._only_reader(node)
        follows = reader is not None and reader.op_type in (*FOLLOWERS.get(node.op_type, ()), *MOVES)
        return follows and self._ends_on_grid(reader)


class Batches:
    """One batch, as ONNX Runtime asks for it."""

    def __init__(self, feeds: dict[str, Any]) -> None:
        self.feeds = iter([feeds])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def written(model: nn.Module, inputs: Inputs, path: Path) -> Path:
    call = Call((), inputs)
    program = export_program(model, call, varying_axes([call]), Silence())
    onnx_file.write(onnx_file.to_onnx(program, {}), path)
    return path


@torch.no_grad()
def ours(model: nn.Module, inputs: Inputs, folder: Path) -> list[Placed]:
    def forward(module: nn.Module) -> Any:
        return module(**inputs)

    prepared = qc.prepare(model, {"": qc.get_default_qconfig()}, forward=forward)
    with qc.calibrating(prepared):
        forward(prepared)
    qc.set_fake_quantize(prepared, qc.FakeQuantState.VALIDATION)
    frozen = freeze(deployed(prepared.eval(), in_float32=True), forward, SINGLE)
    return list(Graph(written(frozen.model, inputs, folder / "ours.onnx")).placed())


@torch.no_grad()
def theirs(model: nn.Module, inputs: Inputs, folder: Path) -> list[Placed]:
    path = written(copy.deepcopy(model), inputs, folder / "float.onnx")
    names = [value.name for value in onnx.load(path, load_external_data=False).graph.input]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs.values(), strict=True)}
    quantization.quantize_static(
        str(path),
        str(folder / "theirs.onnx"),
        Batches(feeds),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        extra_options={"ActivationSymmetric": True},
    )
    return list(Graph(folder / "theirs.onnx").placed())


Difference = tuple[Placed, Placed]
BIAS = (
    "ONNX Runtime writes the bias as int32 of the product's scale; ours is float in the file and int32 there"
)
ACCEPTED: dict[Difference, str] = {
    (Placed("Conv", "XWw", "Q"), Placed("Conv", "XWW", "Q")): BIAS,
    (Placed("Gemm", "XWw", "Q"), Placed("Gemm", "XWW", "Q")): BIAS,
}


def differences(one: list[Placed], other: list[Placed]) -> Counter[Difference]:
    """The nodes that are in both graphs and are not placed alike; moves are seen in their readers."""
    ops = [[placed.op for placed in placed_of] for placed_of in (one, other)]
    blocks = difflib.SequenceMatcher(None, *ops, autojunk=False).get_matching_blocks()
    pairs = [
        pair for a, b, size in blocks for pair in zip(one[a : a + size], other[b : b + size], strict=True)
    ]
    assert len(pairs) > 0.9 * len(one)  # branches may stand in another order
    return Counter(pair for pair in pairs if pair[0] != pair[1] and pair[0].op not in MOVES)


def resnet18() -> tuple[nn.Module, Inputs]:
    models = pytest.importorskip("torchvision.models", reason="needs torchvision: make models")
    return models.resnet18(weights=None, num_classes=10), {"x": torch.randn(2, 3, 32, 32)}


MODELS: list[Callable[[], tuple[nn.Module, Inputs]]] = [resnet18]


@pytest.mark.parametrize("make", MODELS)
def test_quantizers_stand_where_a_deployment_has_them(
    make: Callable[[], tuple[nn.Module, Inputs]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, inputs = make()

    found = differences(ours(model.eval(), inputs, tmp_path), theirs(model, inputs, tmp_path))

    assert set(found) <= set(ACCEPTED), {pair: n for pair, n in found.items() if pair not in ACCEPTED}
