"""Proof by running: the exported file against the fake-quant model, on the evaluation data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from quantcfg.errors import RunError, UserCodeError
from quantcfg.export.calls import Call
from quantcfg.export.difference import (
    SHARE_OF_ERROR,
    SHARE_OF_ERROR_OPTIMISED,
    Difference,
    bound,
    difference,
    holds,
)
from quantcfg.export.external import data_name_of
from quantcfg.export.integers import Integers
from quantcfg.export.program import OtherShapeError, Program, StandIn
from quantcfg.export.report import RUNTIME, Check, Subject
from quantcfg.export.session import Feeds, FileModel, Runner, input_names, latencies_s, open_session, runner
from quantcfg.preparation.state import plan_of, prepared
from quantcfg.stages.evaluate import evaluate
from quantcfg.stages.integers import evaluate_integers, integer_report
from quantcfg.stages.user_code import first_line, in_batch

UNOPTIMISED, OPTIMISED = f"{RUNTIME}, unoptimised", RUNTIME
DEPLOYED = "the deployed model"
_SESSIONS: dict[str, dict[str, Any]] = {
    UNOPTIMISED: {"optimised": False},
    f"{RUNTIME}, biases in float": {"optimised": True, "without": ("WeightBiasQuantization",)},
    OPTIMISED: {"optimised": True},
}
MAX_BATCHES = 16  # whose outputs are compared value by value; metrics are of all
MAX_REFERENCE_MACS = 200_000_000  # beyond it the reference evaluator would take minutes
_REFERENCE_SAMPLES = 2


def check_onnx(subject: Subject, path: Path, float_path: Path | None) -> Check:
    """Run the file at ``path`` in ONNX Runtime in three ways, and in ONNX's reference evaluator.

    ``float_path`` is the float model in the same format. The folder of ``path`` is ours to write to.

    Raises:
        RunError: qparams differ in a bit, or outputs by more than the bound.
    """
    proto = onnx.load(path, load_external_data=False)
    num_equal = check_qparams(subject, _qparams_in(proto))
    names = input_names(proto)
    files = {
        name: FileModel(subject.exported, names, runner(open_session(path, **options)))
        for name, options in _SESSIONS.items()
    }
    found = _compare(subject, files) | _reference_evaluator(subject, proto, path)
    check = _check(subject, found, files[OPTIMISED])
    feeds = files[OPTIMISED].feeds(subject.exported.call)
    check = replace(_with_integers(check, subject, proto, path, feeds), num_qparams=num_equal)
    if float_path is None:
        return check
    return _beside_float(check, files[OPTIMISED].run, path, float_path, feeds)


def _with_integers(check: Check, subject: Subject, proto: onnx.ModelProto, path: Path, feeds: Feeds) -> Check:
    """Add what differs behind each quantizer: as integers flow, unoptimised, and op by op in all ways."""
    integers = Integers(proto, subject.frozen, plan_of(subject.deployed), subject.exported.call)
    flowing, apart = (path.with_name(f"{how}-{path.name}") for how in ("flowing", "apart"))
    integers.write_cut(flowing, apart=False)
    integers.write_cut(apart, apart=True)
    return replace(
        check,
        quantizers=integers.compare(open_session(flowing, **_SESSIONS[UNOPTIMISED]), feeds),
        op_by_op={
            name: integers.compare(open_session(apart, **options), feeds)
            for name, options in _SESSIONS.items()
        },
    )


def _beside_float(check: Check, run: Runner, path: Path, float_path: Path, feeds: Feeds) -> Check:
    """Add latency and size of the file and of the float model's, in the same format and runtime."""
    float_run = runner(open_session(float_path, optimised=True))
    float_s, quantized_s = latencies_s([(float_run, feeds), (run, feeds)])
    return replace(
        check,
        latency_s={"float": float_s, "quantized": quantized_s},
        sizes={"float": _size(float_path), "quantized": _size(path)},
    )


def _size(path: Path) -> int:
    """The bytes of a file and of the data beside it."""
    data = path.with_name(data_name_of(path.name))
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def check_program(subject: Subject, loaded: Callable[..., Any]) -> Check:
    """Run a loaded ``.pt2`` file beside the model.

    Raises:
        RunError: outputs differ by more than the bound.
    """
    model = _Callable(subject.exported, loaded)
    found = _compare(subject, {"torch.export": model})
    return _check(subject, found, model)


class _Callable(StandIn):
    def __init__(self, program: Program, function: Callable[..., Any]) -> None:
        super().__init__(program)
        self.function = (function,)  # no child: a loaded program has no train() and no eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.program.tensors_of(Call(args, kwargs))
        try:
            return self.function[0](*args, **kwargs)
        except Exception as error:  # guards and torch's ops: each has errors of its own
            raise RunError(f"the exported program failed: {first_line(error)}") from error


def check_tensors(subject: Subject, arrays: Mapping[str, np.ndarray]) -> Check:
    """Compare the tensors of a ``.safetensors`` file with the checkpoint; the frozen model has its integers.

    Raises:
        RunError: a bit differs.
    """
    num_equal = check_qparams(subject, arrays)
    return replace(_check(subject, _compare(subject, {}), None), num_qparams=num_equal)


def check_qparams(subject: Subject, arrays: Mapping[str, np.ndarray]) -> int:
    """Compare scales and zero points of the checkpoint with those of a file, by name; returns how many.

    Raises:
        RunError: a bit differs.
    """
    compared = 0
    for name, source in prepared(subject.model).modules.items():
        for field, tensor in source.qparams()._asdict().items():
            array = arrays.get(f"{name}.{field}")
            if array is not None:
                _refuse_other_bits(name, field, tensor.detach().cpu().numpy(), array)
                compared += 1
    return compared


def _refuse_other_bits(name: str, field: str, expected: np.ndarray, found: np.ndarray) -> None:
    if expected.tobytes() != found.astype(expected.dtype).tobytes():
        raise RunError(f"'{name}': the {field} in the file is not that of the checkpoint")


def _qparams_in(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Scale and zero point of each quantizer, as its nodes have them."""
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in proto.graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
    }
    return {
        f"{node.name.rpartition('.')[0]}.{field}": constants[name]
        for node in proto.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for field, name in zip(("scale", "zero_point"), node.input[1:], strict=True)
        if name in constants
    }


def _compare(subject: Subject, files: Mapping[str, nn.Module]) -> dict[str, Difference]:
    """How far ``files``, the float and the deployed model are from the fake-quant model, as it was trained.

    Raises:
        RunError: the frozen model differs from the deployed one.
    """
    models = {"float": subject.float_model, **files}
    totals = dict.fromkeys([*models, DEPLOYED], Difference())
    source, progress = subject.job.source(subject.data), subject.job.progress
    with torch.no_grad(), progress.task("comparing", None) as task:
        for index, batch in source.batches(limit=MAX_BATCHES):
            try:
                found = _on_batch(subject, models, index, batch)
            except OtherShapeError as error:
                progress.note(f"batch {index} of {source.name}() was not compared: {error.message}")
                continue
            totals = {name: totals[name] + found[name] for name in totals}
            task.advance()
    return totals


def _on_batch(
    subject: Subject, models: Mapping[str, nn.Module], index: int, batch: Any
) -> dict[str, Difference]:
    def forward(model: nn.Module) -> Any:
        with in_batch(subject.data, index):
            return subject.job.model_file.forward(model, batch)

    expected, same = forward(subject.model), forward(subject.deployed)
    _refuse_different(difference(forward(subject.frozen.model), same))
    found = {name: difference(forward(model), expected) for name, model in models.items()}
    return {**found, DEPLOYED: difference(same, expected)}


def _refuse_different(frozen: Difference) -> None:
    if frozen.max_abs or frozen.num_changed:
        raise RunError(f"the frozen model differs from the fake-quant model by up to {frozen.max_abs:.3g}")


def _check(subject: Subject, found: dict[str, Difference], model: nn.Module | None) -> Check:
    error, own = found.pop("float"), found[DEPLOYED]
    if not (own.max_abs or own.num_changed):
        del found[DEPLOYED]
    bounds = {name: bound(error, _share(name)) for name in found}
    for name, part in found.items():
        _refuse_beyond_bound(name, part, bounds[name])
    metrics = _metrics(subject, model)
    batches = subject.job.source(subject.data).num_batches()
    compared = MAX_BATCHES if batches is None else min(batches, MAX_BATCHES)
    integers = integer_report(subject.job, subject.deployed, subject.data)
    return Check(metrics, found, error, bounds, compared, integers=integers)


def _metrics(subject: Subject, model: nn.Module | None) -> dict[str, dict[str, float]]:
    """Metrics of all four models; the exported one only has a forward to be evaluated by."""
    source, progress = subject.job.source("eval_data"), subject.job.progress
    metrics = {
        "float": evaluate(subject.float_model, source, progress, "evaluating the float model"),
        "fake-quant": evaluate(subject.model, source, progress, "evaluating the fake-quant model"),
        "integer": evaluate_integers(subject.job, subject.deployed),
    }
    if model is None:
        return metrics
    try:
        metrics["exported"] = evaluate(model, source, progress, "evaluating the exported file")
    except (UserCodeError, OtherShapeError) as error:
        progress.note(f"no metric of the exported file: {error.message}")
    return metrics


def _share(name: str) -> float:
    optimised = _SESSIONS.get(name, {}).get("optimised", False)
    return SHARE_OF_ERROR_OPTIMISED if optimised else SHARE_OF_ERROR


def _refuse_beyond_bound(name: str, found: Difference, allowed: float) -> None:
    if holds(found, allowed):
        return
    raise RunError(
        f"{name} computes something else than the fake-quant model: root mean square {found.rms:.3g}, "
        f"at most {found.max_abs:.3g}; allowed is a root mean square of {allowed:.3g}",
        hint="--no-check writes the file nevertheless",
    )


def _reference_evaluator(subject: Subject, proto: onnx.ModelProto, path: Path) -> dict[str, Difference]:
    """ONNX's own evaluator on two samples; nothing where the model is too large or has an op it lacks."""
    from onnx.reference import ReferenceEvaluator

    if plan_of(subject.model).coverage.macs > MAX_REFERENCE_MACS:
        subject.job.progress.note("the model is too large for ONNX's reference evaluator, which was not run")
        return {}
    source, forward = subject.job.source(subject.data), subject.job.model_file.forward
    ((index, batch),) = source.batches(limit=1)
    if any(axis == 0 for _, axis in subject.exported.axes):
        batch = source.cut(index, batch, _REFERENCE_SAMPLES)
    try:
        evaluator = ReferenceEvaluator(str(path))
        file = FileModel(subject.exported, input_names(proto), lambda feeds: _arrays(evaluator, feeds))
        with np.errstate(all="ignore"):
            exported = forward(file, batch)
    except (NotImplementedError, RuntimeError) as error:  # how it says what it lacks
        subject.job.progress.note(f"ONNX's reference evaluator was not run: {first_line(error)}")
        return {}
    with torch.no_grad():  # outside of the try: outputs that do not even compare are no reason to go on
        return {"ONNX reference": difference(exported, forward(subject.model, batch))}


def _arrays(evaluator: Any, feeds: Feeds) -> list[np.ndarray]:
    try:
        return [np.asarray(array) for array in evaluator.run(None, feeds)]
    except Exception as error:  # its ops have bugs: a ConvTranspose with groups ends in a ValueError
        raise RuntimeError(str(error)) from error
