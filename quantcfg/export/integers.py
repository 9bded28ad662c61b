"""The integers of an ONNX file beside those of the fake-quant model: as they flow through it, and op by op.

A file is cut at its activation quantizers: what each makes becomes an output. Op by op, what is read behind
each becomes an input as well, which is given the fake-quant model's integers: every op, or fused chain, then
computes from what the model computed from, and its difference is its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession  # type: ignore[import-untyped]  # it ships no types
from torch import Tensor, nn

from quantcfg.export.calls import Call
from quantcfg.export.freeze import FrozenModel
from quantcfg.export.report import QuantizerDifference
from quantcfg.export.session import Feeds, runner
from quantcfg.preparation.plan import Plan

_QUANTIZED = re.compile(r"(?P<owner>.*)\.quantized(?P<again>_*)", re.DOTALL)
_GIVEN = "given."
INPUT = "input"  # stands for the op where a quantizer is that of an input, and no op computes before it

Cut = dict[str, np.ndarray]
"""Integers by the name of the value that they are in the file."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A QuantizeLinear of an activation: its quantizer, which of its calls this is, and what it makes."""

    owner: str
    number: int
    value: str
    elem_type: int


class Integers:
    """The integers of one call of the frozen model, and where they stand in a file.

    Args:
        proto: the file; large constants may lie beside it.
        frozen: the model that the file was made from.
        plan: says which op each quantizer belongs to.
        call: the arguments of the forward that is compared.
    """

    def __init__(self, proto: onnx.ModelProto, frozen: FrozenModel, plan: Plan, call: Call) -> None:
        seen = _integers_of(frozen, call)
        self.nodes = [node for node in _nodes(proto) if node.number < len(seen.get(node.owner, ()))]
        self.expected: Cut = {node.value: seen[node.owner][node.number].numpy() for node in self.nodes}
        self._proto = proto
        self._ops = _ops_of(plan)

    def write_cut(self, path: Path, *, apart: bool) -> None:
        """Write the file with every quantizer as an output; ``apart`` makes inputs of what is read there."""
        cut = onnx.ModelProto()
        cut.CopyFrom(self._proto)
        del cut.graph.output[:]
        for node in self.nodes:
            cut.graph.output.append(onnx.helper.make_tensor_value_info(node.value, node.elem_type, None))
        if apart:
            self._cut_apart(cut.graph)
        onnx.save(cut, path)

    def _cut_apart(self, graph: onnx.GraphProto) -> None:
        values = {node.value for node in self.nodes}
        for reader in graph.node:
            for index, name in enumerate(reader.input):
                if name in values:
                    reader.input[index] = _GIVEN + name
        read = {name for reader in graph.node for name in reader.input}
        for node in self.nodes:
            if (name := _GIVEN + node.value) in read:
                graph.input.append(onnx.helper.make_tensor_value_info(name, node.elem_type, None))

    def compare(self, session: InferenceSession, feeds: Feeds) -> tuple[QuantizerDifference, ...]:
        """Run a file that was cut on ``feeds``, and count what differs behind each quantizer."""
        names = [value.name for value in session.get_inputs()]
        given = {name: self.expected[name.removeprefix(_GIVEN)] for name in names if name not in feeds}
        found = runner(session)({**feeds, **given})
        return tuple(self._difference(node, array) for node, array in zip(self.nodes, found, strict=True))

    def _difference(self, node: _Node, found: np.ndarray) -> QuantizerDifference:
        steps = np.abs(found.astype(np.int64) - self.expected[node.value])
        return QuantizerDifference(
            name=node.owner,
            op=self._ops.get(node.owner, INPUT),
            num_values=steps.size,
            num_different=int((steps > 0).sum()),
            max_steps=int(steps.max(initial=0)),
        )


def _ops_of(plan: Plan) -> dict[str, str]:
    """The op before each output quantizer: the first one of a fused chain, whose accumulator it rounds."""
    ops: dict[str, str] = {}
    for row in plan.rows:
        ops.setdefault(f"{row.fused_into or row.name}.output", row.op)
    return ops


def _nodes(proto: onnx.ModelProto) -> Iterator[_Node]:
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        named = _QUANTIZED.fullmatch(node.name) if node.op_type == "QuantizeLinear" else None
        if named is not None and node.input[2] in types:
            yield _Node(named["owner"], len(named["again"]), node.output[0], types[node.input[2]])


def _integers_of(frozen: FrozenModel, call: Call) -> dict[str, list[Tensor]]:
    """The integers that each activation quantizer makes, in the order of its calls."""
    with _noting(frozen) as seen, torch.no_grad():
        frozen.model(*call.args, **call.kwargs)
    return seen


@contextmanager
def _noting(frozen: FrozenModel) -> Iterator[dict[str, list[Tensor]]]:
    seen: dict[str, list[Tensor]] = {}

    def note(module: nn.Module, args: Any) -> None:
        seen.setdefault(str(module.name), []).append(frozen.activations[str(module.name)].integers(args[0]))

    hooks = [module.register_forward_pre_hook(note) for module in frozen.activations.values()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
