"""A model as torch.export sees it, with axes that vary; and what is said when it cannot be seen so."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from quantcfg.errors import RunError
from quantcfg.export.calls import Axes, Call, dynamic_shapes, widened
from quantcfg.preparation.intercept import interceptor_of
from quantcfg.preparation.state import prepared
from quantcfg.stages.progress import Progress
from quantcfg.stages.user_code import first_line, innermost_line


class OtherShapeError(RunError):
    """A batch that a file does not take, because an axis is fixed in it."""


@dataclass(frozen=True, slots=True)
class Program:
    """An exported program, the call it was made with, and its axes that vary.

    ``signature`` is that of the model's forward. ``results`` is what it returns, flat: a tensor as its
    ``TensorArgument``, a constant as itself; ``structure`` makes of them what the model returns.
    """

    exported: ExportedProgram
    signature: inspect.Signature
    call: Call
    axes: Axes
    results: list[Any]
    structure: pytree.TreeSpec

    def drop_constants(self) -> None:
        """Let the exported program return its tensors alone: ONNX's exporter knows no other results."""
        specs = self.exported.graph_signature.output_specs
        output = self.exported.graph.output_node()
        kept = [
            (value, spec)
            for value, spec in zip(output.args[0], specs, strict=True)
            if not isinstance(spec.arg, ConstantArgument)
        ]
        output.args = (tuple(value for value, _ in kept),)
        specs[:] = [spec for _, spec in kept]
        signature = self.exported.module_call_graph[0].signature
        assert signature is not None
        signature.out_spec = pytree.tree_structure([0] * len(kept))

    def tensors_of(self, call: Call) -> list[Tensor]:
        """The tensors of a call, in the order of the program's inputs.

        Raises:
            RunError: it is a call with other arguments.
            OtherShapeError: it has another length along an axis that does not vary.
        """
        tensors = call.like(self.call).tensors
        for index, (tensor, example) in enumerate(zip(tensors, self.call.tensors, strict=True)):
            for axis, (found, fixed) in enumerate(zip(tensor.shape, example.shape, strict=False)):
                if found != fixed and (index, axis) not in self.axes:
                    raise OtherShapeError(
                        f"input {index} of the file has {fixed} along axis {axis}, and a batch has {found}"
                    )
        return tensors


class StandIn(nn.Module):
    """What is called as the model that a program was made from.

    Whoever looks which names the model takes, as a forward does that a dict with targets is handed to, finds
    those of the model.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        forward = partial(self.forward)
        vars(forward)["__signature__"] = program.signature
        vars(self)["forward"] = forward


def export_program(model: nn.Module, call: Call, axes: Axes, progress: Progress) -> Program:
    """Export ``model``; where not all ``axes`` can vary, those that can, and that is said.

    Raises:
        RunError: torch.export refuses the model; the message has its reason and the line of the model.
    """
    program = _export_varying(model, call, axes, progress)
    fixed = sorted(axes - program.axes)
    if not fixed:
        return program
    if any(axis == 0 for _, axis in fixed):  # not at the two samples that one was widened to
        program = _export(model, call, frozenset((index, axis) for index, axis in axes if axis))
    named = ", ".join(f"input {index} axis {axis}" for index, axis in sorted(axes - program.axes))
    progress.note(f"fixed in the file, because the model computes with its length: {named}")
    return program


def _export_varying(model: nn.Module, call: Call, axes: Axes, progress: Progress) -> Program:
    """With all ``axes``, or with that of the samples alone where torch.export refuses the others."""
    samples = frozenset((index, axis) for index, axis in axes if axis == 0)
    try:
        return _export(model, call, axes)
    except RunError as error:
        if samples == axes:
            raise
        reason = first_line(error.__cause__ or error)
        progress.note(f"only the axis of the samples is dynamic in the file: {reason}")
    return _export(model, call, samples)


def _export(model: nn.Module, call: Call, axes: Axes) -> Program:
    wide = widened(call, axes)
    shapes, kwarg_shapes = dynamic_shapes(wide, axes)
    signature = inspect.signature(model.forward)
    by_parameter = signature.bind(*shapes, **kwarg_shapes).arguments
    try:
        with quiet(), torch.no_grad():
            exported = torch.export.export(
                model, wide.args, dict(wide.kwargs), strict=False, dynamic_shapes=by_parameter
            )
    except Exception as error:  # it runs the user's forward, and its own errors have no base in common
        raise _refusal(error, model) from error
    return Program(
        exported, signature, wide, _varying(exported, axes), _results(exported), exported.call_spec.out_spec
    )


def _results(exported: ExportedProgram) -> list[Any]:
    specs = exported.graph_signature.output_specs
    arguments = [spec.arg for spec in specs if spec.kind is OutputKind.USER_OUTPUT]
    return [arg.value if isinstance(arg, ConstantArgument) else arg for arg in arguments]


def _varying(exported: ExportedProgram, axes: Axes) -> Axes:
    """Those of ``axes`` that the exporter did not fix at the length that it saw."""
    specs = exported.graph_signature.input_specs
    names = [spec.arg.name for spec in specs
             if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument)]  # fmt: skip
    shapes = {node.name: node.meta["val"].shape for node in exported.graph.nodes if node.op == "placeholder"}
    return frozenset((index, axis) for index, axis in axes if not is_concrete_int(shapes[names[index]][axis]))


def _refusal(error: Exception, model: nn.Module) -> RunError:
    line = innermost_line(error.__traceback__)
    where = f" at {line}" if line else ""
    return RunError(
        f"torch.export refuses the model{where}: {first_line(error)}",
        hint=f"{_reason(model)}; --format safetensors needs no program",
    )


def _reason(model: nn.Module) -> str:
    sites = prepared(model).recording.sites if interceptor_of(model) is not None else ()
    packs = ", ".join(f"'{site.name}'" for site in sites if site.op == "_pack_padded_sequence")
    if not packs:
        return "control flow that depends on values of tensors cannot be written to a file"
    return (
        f"what {packs} packs has lengths that are values of tensors: give the layers behind it padded tensors"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what exporters warn of, log and print: it is about their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
