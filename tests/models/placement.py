"""Where the Q and DQ pairs of an ONNX file stand, and where two files of one model differ in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx")

PAIR = ("QuantizeLinear", "DequantizeLinear")
MOVES = ("Reshape", "Transpose", "MaxPool", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand",
         "Identity", "Pad", "Gather", "Relu", "Clip", "Concat", "Resize")  # fmt: skip
_GEMMS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ENDS = ("Relu", "Clip")
_FOLLOWERS = {
    "Add": _ENDS,
    **dict.fromkeys((*_GEMMS, "Bias"), ("Add", *_ENDS)),
    "MatMul": ("Bias", "Add", *_ENDS),
}


class Graph:
    """An ONNX graph, seen through its pairs.

    A chain (a layer with what follows it at once) is one op: between its nodes everything is on a grid if
    its end is. What is moved keeps its grid.
    """

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path, load_external_data=False).graph
        self.outputs = [output.name for output in graph.output]
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        self.constants = {tensor.name for tensor in graph.initializer}
        for node in graph.node:  # in the order in which they run
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            if all(name in self.constants for name in node.input if name):
                self.constants.update(node.output)

    def letters(self, node: Any) -> dict[int | str, str]:
        """How each argument of a node, by its number, and its result stand.

        ``X`` is a value on a grid, ``x`` one in float; ``W`` and ``w`` are constants on a grid and in float.
        """
        arguments = {place: self._letter(name, node) for place, name in enumerate(node.input) if name}
        return arguments | {"result": "X" if self._ends_on_grid(node) else "x"}

    def without_pairs(self, name: str) -> str:
        """The value that a value was before it was quantized and dequantized."""
        maker = self.makers.get(name)
        return self.without_pairs(maker.input[0]) if maker is not None and maker.op_type in PAIR else name

    def op(self, node: Any) -> str:
        """The op of a node; the sum that is the bias of a matrix product is none of its own."""
        if node.op_type == "Add" and any(name in self.constants for name in node.input):
            makers = [self.makers.get(self.without_pairs(name)) for name in node.input]
            if any(maker is not None and self._is_layer(maker, "MatMul") for maker in makers):
                return "Bias"
        return str(node.op_type)

    def split_chains(self) -> list[str]:
        """The nodes that could be in the chain of a layer that they alone read, but for a pair."""
        return [
            node.name
            for node in self.makers.values()
            if node.op_type in ("Add", *_ENDS)
            if (layers := [name for name in node.input if self._could_follow(name, node)])
            if all(self.makers[name].op_type in PAIR for name in layers)
        ]

    def quantized_twice(self) -> list[str]:
        """The nodes that bring what is on a grid to another one; what is joined may come from several."""
        return [
            node.name
            for node in self.makers.values()
            if node.op_type == PAIR[0] and node.input[0] not in self.constants
            if self._on_grid(node.input[0]) and self.makers[node.input[0]].op_type != "Concat"
            if node.input[1] != self._scale_of(node.input[0])
        ]

    def moves(self, node: Any) -> bool:
        """Whether a node keeps its argument's grid: not if it looks rows up in a table, or makes means."""
        made = any(attribute.s in (b"linear", b"cubic") for attribute in node.attribute)
        return node.op_type in MOVES and node.input[0] not in self.constants and not made

    def _scale_of(self, name: str) -> str:
        maker = self.makers[name]
        return str(maker.input[1]) if maker.op_type in PAIR else self._scale_of(maker.input[0])

    def _letter(self, name: str, node: Any) -> str:
        if name in self.constants:
            return "W" if self._on_grid(name) else "w"
        return "X" if self._on_grid(name) or self._is_inside_chain(name, node) else "x"

    def _on_grid(self, name: str) -> bool:
        maker = self.makers.get(name)
        if maker is None:
            return False
        return maker.op_type in PAIR or (self.moves(maker) and self._on_grid(maker.input[0]))

    def _is_layer(self, node: Any, *ops: str) -> bool:
        return node.op_type in (ops or _GEMMS) and any(name in self.constants for name in node.input)

    def _followers(self, node: Any) -> tuple[str, ...]:
        op = self.op(node)
        return _FOLLOWERS.get(op, ()) if op not in _GEMMS or self._is_layer(node) else ()

    def _only_reader(self, node: Any) -> Any:
        readers = self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 else None

    def _is_inside_chain(self, name: str, node: Any) -> bool:
        maker = self.makers.get(name)
        if maker is None or self.op(node) not in self._followers(maker):
            return False
        return self._only_reader(maker) is node and self._ends_on_grid(node)

    def _could_follow(self, name: str, node: Any) -> bool:
        value = self.without_pairs(name)
        maker = self.makers.get(value)
        if maker is None or value in self.constants or self.op(node) not in self._followers(maker):
            return False
        readers = [reader for copy in self._copies(value) for reader in self.readers.get(copy, ())]
        return sum(reader.op_type not in PAIR for reader in readers) == 1

    def _copies(self, name: str) -> Iterator[str]:
        """A value, and what pairs make of it."""
        yield name
        for reader in self.readers.get(name, ()):
            if reader.op_type in PAIR:
                yield from self._copies(reader.output[0])

    def _ends_on_grid(self, node: Any) -> bool:
        if any(reader.op_type in PAIR for name in node.output for reader in self.readers.get(name, ())):
            return True
        if self.moves(node) and self._on_grid(node.input[0]):
            return True
        reader = self._only_reader(node)
        if reader is None:
            return False
        moved = self.moves(reader) and reader.input[0] == node.output[0]
        return (moved or self.op(reader) in self._followers(node)) and self._ends_on_grid(reader)


def differences(one: Graph, other: Graph) -> Counter[str]:
    """What is placed otherwise, in one walk from the outputs of both: ``Gemm 2: w, W`` is how often.

    Without their pairs both must be one graph. What moves a value is seen in what reads it.
    """
    found: Counter[str] = Counter()
    for node, twin in _twins(one, other):
        if not one.moves(node) and node.op_type != "Shape":
            pairs = zip(one.letters(node).items(), other.letters(twin).values(), strict=True)
            found.update(f"{one.op(node)} {place}: {a}, {b}" for (place, a), b in pairs if a != b)
    return found


def _twins(one: Graph, other: Graph) -> Iterator[tuple[Any, Any]]:
    pending = list(zip(one.outputs, other.outputs, strict=True))
    seen: set[str] = set()
    while pending:
        name, twin = pending.pop()
        name, twin = one.without_pairs(name), other.without_pairs(twin)
        if name in seen or name in one.constants or name not in one.makers:
            continue
        seen.add(name)
        node, same = one.makers[name], other.makers[twin]
        assert node.op_type == same.op_type
        yield node, same
        pending += zip(node.input, same.input, strict=True)
