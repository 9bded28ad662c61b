"""Running an exported file as if it were the model, so that whatever evaluates one evaluates the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
import torch
from torch import Tensor
from torch.export.graph_signature import TensorArgument
from torch.utils import _pytree as pytree

from quantcfg.errors import RunError
from quantcfg.export.calls import Call
from quantcfg.export.deployed import wide
from quantcfg.export.program import Program, StandIn
from quantcfg.stages.user_code import first_line

Feeds = dict[str, np.ndarray]
Runner = Callable[[Feeds], Sequence[np.ndarray]]
_ERRORS_ONLY = 3
_SHORTEST, _LONGEST = 10, 200  # repetitions of a timing
_SECONDS = 1.0  # of a timing, for each of the models


class FileModel(StandIn):
    """Takes what the exported model takes and returns what it returns, computed from the file.

    Args:
        program: what the file was made from: it knows the structure of arguments and results.
        input_names: of the file, in the order of the tensors among the arguments.
        run: computes the file's outputs.
    """

    def __init__(self, program: Program, input_names: Sequence[str], run: Runner) -> None:
        super().__init__(program)
        self.input_names = tuple(input_names)
        self.run = run
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the file on the tensors among the arguments."""
        arrays = iter(self.run(self.feeds(Call(args, kwargs))))
        leaves = [
            torch.from_numpy(next(arrays)) if isinstance(result, TensorArgument) else result
            for result in self.program.results
        ]
        return pytree.tree_unflatten(leaves, self.program.structure)

    def feeds(self, call: Call) -> Feeds:
        """The inputs of the file for one call."""
        tensors = self.program.tensors_of(call)
        return {name: _array(tensor) for name, tensor in zip(self.input_names, tensors, strict=True)}


def input_names(proto: onnx.ModelProto) -> list[str]:
    """The names of the file's inputs, in order."""
    return [value.name for value in proto.graph.input]


def open_session(
    content: bytes | Path, *, optimised: bool, without: Sequence[str] = ()
) -> onnxruntime.InferenceSession:
    """A file in ONNX Runtime, on the CPU and on as many threads as torch; ``without`` names optimisations.

    Raises:
        RunError: ONNX Runtime refuses the file.
    """
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _ERRORS_ONLY
    with _errors_as("refuses the file"):
        return onnxruntime.InferenceSession(
            content if isinstance(content, bytes) else str(content),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(without),
        )


def runner(session: onnxruntime.InferenceSession) -> Runner:
    """Runs a session; its errors become ours."""

    def run(feeds: Feeds) -> Sequence[np.ndarray]:
        with _errors_as("failed on the file"):
            outputs: Sequence[np.ndarray] = session.run(None, feeds)
        return outputs

    return run


@contextmanager
def _errors_as(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime has a type for each of its status codes, and no base of them
        raise RunError(f"ONNX Runtime {what}: {first_line(error)}") from error


def latencies_s(models: Sequence[tuple[Runner, Feeds]]) -> list[float]:
    """The median seconds of one run of each, measured in turns so that all meet the same machine."""
    warm_up = [min(_seconds(run, feeds) for _ in range(2)) for run, feeds in models]
    num_rounds = min(max(int(_SECONDS / max(warm_up)), _SHORTEST), _LONGEST)
    rounds = [[_seconds(run, feeds) for run, feeds in models] for _ in range(num_rounds)]
    return [median(column) for column in zip(*rounds, strict=True)]


def _seconds(run: Runner, feeds: Feeds) -> float:
    start = time.perf_counter()
    run(feeds)
    return time.perf_counter() - start


def _array(tensor: Tensor) -> np.ndarray:
    try:
        return np.ascontiguousarray(wide(tensor).detach().cpu().numpy())
    except TypeError as error:  # float8
        raise RunError(f"the check cannot hand {tensor.dtype} to ONNX Runtime", hint="--no-check") from error
