"""The export of a finished run: freeze, translate, check, and only then put the file under its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError
from torch import nn

from quantcfg.errors import QuantcfgError, RunError, UsageError
from quantcfg.export import table
from quantcfg.export.calls import Axes, Call, example_calls, source_name, varying_axes
from quantcfg.export.deployed import deployed, is_bfloat16, sharing_copy, use_float32
from quantcfg.export.files import durable, publish, staged
from quantcfg.export.freeze import FrozenModel, freeze
from quantcfg.export.ops import PLAIN, SINGLE, Ops
from quantcfg.export.program import Program, export_program, quiet
from quantcfg.export.report import Check, ExportReport, Subject
from quantcfg.preparation.state import FakeQuantState, plan_of, set_fake_quantize
from quantcfg.runs.directory import RunDirectory
from quantcfg.runs.writer import naming, to_json
from quantcfg.stages import records
from quantcfg.stages.fingerprint import versions
from quantcfg.stages.job import Job
from quantcfg.stages.user_code import first_line, in_batch

SUFFIXES = {"onnx": ".onnx", "safetensors": ".safetensors", "pt2": ".pt2"}
_NEEDED = {"onnx": ("onnx", "onnxscript"), "safetensors": (), "pt2": ()}
_QPARAMS = (".scale", ".zero_point")
_INSTALL = "pip install 'quantcfg[export]'"


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted. ``check`` of None means: when what it needs is installed."""

    output: Path
    format: str
    check: bool | None = None
    force: bool = False

    @property
    def table(self) -> Path:
        """Where the table of a ``safetensors`` export goes."""
        return self.output.with_suffix(".json")

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is written."""
        return (self.output, self.table) if self.format == "safetensors" else (self.output,)


@dataclass(frozen=True, slots=True)
class _Work:
    """A run rebuilt, its model as it is deployed, and how that is called."""

    job: Job
    run: RunDirectory
    float_model: nn.Module
    model: nn.Module
    deployed: nn.Module
    batch: Any
    calls: list[Call]
    metadata: Mapping[str, str]

    def freeze(self, ops: Ops) -> FrozenModel:
        """A frozen copy of the deployed model, made on the first batch."""
        with in_batch(source_name(self.job), 0):
            return freeze(self.deployed, lambda model: self.job.model_file.forward(model, self.batch), ops)

    def export(self, model: nn.Module, axes: Axes | None = None) -> Program:
        """``model`` as an exported program, whose ``axes`` vary: by default all that may."""
        wanted = varying_axes(self.calls) if axes is None else axes
        return export_program(model, self.calls[0], wanted, self.job.progress)


@dataclass(frozen=True, slots=True)
class _Made:
    """What is to be written: ``write`` puts it at a path, and returns the names of the files there.

    ``check`` is to be run on the path that was written to.
    """

    frozen: FrozenModel
    write: Callable[[Path], list[str]]
    check: Callable[[Path], Check]
    program: Program | None = None


def export_run(job: Job, run: RunDirectory, request: Request) -> ExportReport:
    """Export a finished run. Nothing is written unless the check, if there is one, found no fault.

    Raises:
        UsageError: the output cannot be used, or a package is missing.
        RunError: the run is damaged or of another model, the model cannot be exported, or the check failed.
    """
    _refuse_output(request, run)
    wants_check = _wants_check(request)
    work = _work(job, run, request)
    with torch.no_grad():
        made = _MAKERS[request.format](work, request)
        with staged(request.output) as folder:
            path = folder / request.output.name
            names = _written(made, path, request.output)
            _refuse_paths([request.output.with_name(name) for name in names], force=request.force)
            check = made.check(path) if wants_check else None
            size_bytes = sum((folder / name).stat().st_size for name in names if not name.endswith(".json"))
            publish(folder, request.output, names)
    return ExportReport(
        path=str(request.output),
        format=request.format,
        size_bytes=size_bytes,
        num_weights=len(made.frozen.weights),
        num_activations=len(made.frozen.activations),
        dynamic_axes=_dynamic_axes(made.program),
        check=check,
    )


def _written(made: _Made, path: Path, output: Path) -> list[str]:
    """Write what was made to ``path``; the error names ``output``.

    Raises:
        RunError: the system refused.
    """
    try:
        with naming(output):
            return made.write(path)
    except (SafetensorError, RuntimeError) as error:  # how safetensors and torch say that a disk is full
        raise RunError(f"cannot write '{output}': {first_line(error)}") from error


def _refuse_output(request: Request, run: RunDirectory) -> None:
    missing = [name for name in _NEEDED[request.format] if find_spec(name) is None]
    if missing:
        raise UsageError(f"--format {request.format} needs {' and '.join(missing)}", hint=_INSTALL)
    if request.format == "safetensors" and request.table == request.output:
        raise UsageError(f"'{request.output}' is the name of the table that lies beside the file",
                         hint="choose a name that does not end in .json")  # fmt: skip
    _refuse_paths(request.files, force=request.force)
    with naming(request.output):
        folders = request.output.resolve().parents
    if run.path.resolve() in folders:
        raise UsageError(
            f"'{request.output}' is inside of the run directory, which is left as it is",
            hint="choose another place with -o",
        )


def _refuse_paths(paths: Iterable[Path], *, force: bool) -> None:
    for path in paths:
        with naming(path):  # the system refuses to look at a name that is too long
            _refuse_path(path, force=force)


def _refuse_path(path: Path, *, force: bool) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in str(path.absolute())):
        raise UsageError(f"'{path}' is no name in UTF-8", hint="choose another with -o")
    if path.is_symlink():
        raise UsageError(f"'{path}' is a link", hint="name the file itself with -o")
    if path.exists() and not path.is_file():
        raise UsageError(f"'{path}' is no file", hint="choose another name with -o")
    if path.exists() and not force:
        raise UsageError(f"'{path}' exists already", hint="--force replaces it; -o names another file")
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory '{path.parent}'", hint="make it, or choose another with -o")


def _wants_check(request: Request) -> bool:
    can = request.format != "onnx" or find_spec("onnxruntime") is not None
    if request.check and not can:
        raise UsageError("--check needs onnxruntime", hint=_INSTALL)
    return can if request.check is None else request.check


def _work(job: Job, run: RunDirectory, request: Request) -> _Work:
    rebuilt = records.rebuild(job, run)
    set_fake_quantize(rebuilt.model, FakeQuantState.VALIDATION)
    in_float32 = request.format == "onnx"
    if in_float32 and is_bfloat16(rebuilt.model):
        job.progress.note("the model is in bfloat16; the file computes in float32, with the same weights")
    examples = example_calls(job, rebuilt.model)
    return _Work(
        job=job,
        run=run,
        float_model=rebuilt.float_model.eval(),
        model=rebuilt.model.eval(),
        deployed=deployed(rebuilt.model, in_float32=in_float32),
        batch=examples[0][0],
        calls=[call.in_float32() if in_float32 else call for _, call in examples],
        metadata=_metadata(run, rebuilt.result),
    )


def _metadata(run: RunDirectory, result: Mapping[str, Any]) -> dict[str, str]:
    """What a file says of where it comes from: the run's hashes, not its name or path."""
    facts = run.verify().facts
    own = {
        "stage": str(result["stage"]),
        "seed": str(result["seed"]),
        "config_sha256": str(facts["config"]),
        "weights_sha256": str(facts["weights"]),
    }
    return {f"quantcfg.{key}": text for key, text in (own | _prefixed(versions())).items()}


def _prefixed(found: Mapping[str, str]) -> dict[str, str]:
    return {f"version.{name}": version for name, version in found.items()}


def _make_onnx(work: _Work, request: Request) -> _Made:
    from quantcfg.export.onnx_file import write

    del request
    frozen = work.freeze(SINGLE)
    program, model = _to_onnx(work, frozen.model, work.metadata)

    def check(path: Path) -> Check:
        from quantcfg.export.check import check_onnx

        return check_onnx(_subject(work, frozen, program), path, _float_file(work, path))

    return _Made(frozen, lambda path: write(model, path), check, program)


def _to_onnx(work: _Work, model: nn.Module, metadata: Mapping[str, str]) -> tuple[Program, Any]:
    """``model`` with axes that vary, or with none where torch's exporter can only express it so.

    Raises:
        RunError: it can express it in neither way.
    """
    from quantcfg.export.onnx_file import to_onnx

    program = work.export(model)
    try:
        return program, to_onnx(program, metadata)
    except RunError as error:
        fixed = work.export(model, frozenset()) if program.axes else program
        try:
            translated = to_onnx(fixed, metadata)
        except RunError:
            raise error from None
        work.job.progress.note(f"every axis is fixed in the file: with one that varies, {error.message}")
        return fixed, translated


def _float_file(work: _Work, path: Path) -> Path | None:
    """The float model in the same format, to compare size and speed with; None where it cannot be made."""
    from quantcfg.export.onnx_file import write

    beside = path.with_name(f"float-{path.name}")
    try:
        write(_to_onnx(work, use_float32(sharing_copy(work.float_model)), {})[1], beside)
    except QuantcfgError as error:
        work.job.progress.note(f"no float file to compare with: {error.message}")
        return None
    return beside


def _make_pt2(work: _Work, request: Request) -> _Made:
    del request
    frozen = work.freeze(PLAIN)
    program = work.export(frozen.model)
    for node in program.exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    program.exported.example_inputs = None  # the user's data

    def write(path: Path) -> list[str]:
        with quiet(), durable(path) as file:
            torch.export.save(program.exported, file, extra_files=dict(work.metadata))
        return [path.name]

    def check(path: Path) -> Check:
        from quantcfg.export.check import check_program

        with quiet():
            loaded = torch.export.load(path).module()
        return check_program(_subject(work, frozen, program), loaded)

    return _Made(frozen, write, check, program)


def _make_safetensors(work: _Work, request: Request) -> _Made:
    frozen = work.freeze(PLAIN)

    def write(path: Path) -> list[str]:
        rows = to_json(table.to_table(frozen, plan_of(work.deployed), work.metadata))
        with durable(path.with_name(request.table.name)) as file:
            file.write(rows.encode())
        table.write_safetensors(frozen, work.metadata, path)
        return [request.table.name, path.name]

    def check(path: Path) -> Check:
        from quantcfg.export.check import check_tensors

        with safetensors.safe_open(path, "numpy") as file:
            names = [name for name in file.keys() if name.endswith(_QPARAMS)]  # noqa: SIM118  it is no dict
            arrays = {name: file.get_tensor(name) for name in names}
        return check_tensors(_subject(work, frozen, None), arrays)

    return _Made(frozen, write, check)


def _subject(work: _Work, frozen: FrozenModel, program: Program | None) -> Subject:
    return Subject(
        work.job, work.float_model, work.model, work.deployed, frozen, program, source_name(work.job)
    )


_MAKERS: dict[str, Callable[[_Work, Request], _Made]] = {
    "onnx": _make_onnx,
    "safetensors": _make_safetensors,
    "pt2": _make_pt2,
}


def _dynamic_axes(program: Program | None) -> tuple[str, ...]:
    if program is None:
        return ()
    return tuple(f"input {index} axis {axis}" for index, axis in sorted(program.axes))
