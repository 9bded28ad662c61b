"""The export of a finished run: freeze, translate, check, and only then put the file under its name."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantcfg.errors import QuantcfgError, UsageError
from quantcfg.export import table
from quantcfg.export.calls import Call, example_calls, source_name, varying_axes
from quantcfg.export.files import publish, staged, write_durably
from quantcfg.export.freeze import FrozenModel, freeze
from quantcfg.export.ops import PLAIN, SINGLE, Ops
from quantcfg.export.program import Program, export_program, quiet
from quantcfg.export.report import Check, ExportReport, Subject
from quantcfg.preparation.state import FakeQuantState, plan_of, set_fake_quantize
from quantcfg.runs.directory import RunDirectory
from quantcfg.runs.writer import to_json
from quantcfg.stages import records
from quantcfg.stages.fingerprint import versions
from quantcfg.stages.job import Job
from quantcfg.stages.user_code import in_batch

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
    """A run rebuilt, and how its model is called."""

    job: Job
    run: RunDirectory
    float_model: nn.Module
    model: nn.Module
    batch: Any
    calls: list[Call]
    metadata: Mapping[str, str]

    def freeze(self, ops: Ops) -> FrozenModel:
        """A frozen copy of the model, made on the first batch."""
        with in_batch(source_name(self.job), 0):
            return freeze(self.model, lambda model: self.job.model_file.forward(model, self.batch), ops)

    def export(self, model: nn.Module) -> Program:
        """``model`` as an exported program."""
        return export_program(model, self.calls[0], varying_axes(self.calls), self.job.progress)


@dataclass(frozen=True, slots=True)
class _Made:
    """The files by name, and a check that has yet to be run on them, in the folder where they lie."""

    frozen: FrozenModel
    contents: Mapping[str, bytes]
    check: Callable[[Path], Check]
    program: Program | None = None

    @property
    def size_bytes(self) -> int:
        """Of the model: the table of a ``safetensors`` export is not part of it."""
        return sum(len(content) for name, content in self.contents.items() if not name.endswith(".json"))


def export_run(job: Job, run: RunDirectory, request: Request) -> ExportReport:
    """Export a finished run. Nothing is written unless the check, if there is one, found no fault.

    Raises:
        UsageError: the output cannot be used, or a package is missing.
        RunError: the run is damaged or of another model, the model cannot be exported, or the check failed.
    """
    _refuse_output(request)
    wants_check = _wants_check(request)
    work = _work(job, run)
    with torch.no_grad():
        made = _MAKERS[request.format](work, request)
        _refuse_paths([request.output.with_name(name) for name in made.contents], force=request.force)
        with staged(request.output, made.contents) as folder:
            check = made.check(folder) if wants_check else None
            publish(folder, request.output, list(made.contents))
    return ExportReport(
        path=str(request.output),
        format=request.format,
        size_bytes=made.size_bytes,
        num_weights=len(made.frozen.weights),
        num_activations=len(made.frozen.activations),
        dynamic_axes=_dynamic_axes(made.program),
        check=check,
    )


def _refuse_output(request: Request) -> None:
    missing = [name for name in _NEEDED[request.format] if find_spec(name) is None]
    if missing:
        raise UsageError(f"--format {request.format} needs {' and '.join(missing)}", hint=_INSTALL)
    _refuse_paths(request.files, force=request.force)


def _refuse_paths(paths: Iterable[Path], *, force: bool) -> None:
    for path in paths:
        if path.is_symlink():
            raise UsageError(f"'{path}' is a link", hint="name the file itself with -o")
        if path.exists() and not path.is_file():
            raise UsageError(f"'{path}' is no file", hint="choose another name with -o")
        if path.exists() and not force:
            raise UsageError(f"'{path}' exists already", hint="--force replaces it; -o names another file")
        if not path.parent.is_dir():
            raise UsageError(
                f"there is no directory '{path.parent}'", hint="make it, or choose another with -o"
            )


def _wants_check(request: Request) -> bool:
    can = request.format != "onnx" or find_spec("onnxruntime") is not None
    if request.check and not can:
        raise UsageError("--check needs onnxruntime", hint=_INSTALL)
    return can if request.check is None else request.check


def _work(job: Job, run: RunDirectory) -> _Work:
    rebuilt = records.rebuild(job, run)
    set_fake_quantize(rebuilt.model, FakeQuantState.VALIDATION)
    examples = example_calls(job, rebuilt.model)
    return _Work(
        job=job,
        run=run,
        float_model=rebuilt.float_model,
        model=rebuilt.model.eval(),
        batch=examples[0][0],
        calls=[call for _, call in examples],
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
    from quantcfg.export.external import contents_of
    from quantcfg.export.onnx_file import check_file, to_onnx

    frozen = work.freeze(SINGLE)
    program = work.export(frozen.model)
    proto = to_onnx(program, work.metadata)

    def check(folder: Path) -> Check:
        from quantcfg.export.check import check_onnx

        path = folder / request.output.name
        check_file(path)
        return check_onnx(_subject(work, frozen, program), path, _float_file(work, folder))

    return _Made(frozen, contents_of(proto, request.output.name), check, program)


def _float_file(work: _Work, folder: Path) -> Path | None:
    """The float model in the same format, to compare size and speed with; None where it cannot be made."""
    from quantcfg.export.external import contents_of
    from quantcfg.export.onnx_file import to_onnx

    try:
        contents = contents_of(to_onnx(work.export(work.float_model), {}), "float.onnx")
    except QuantcfgError as error:
        work.job.progress.note(f"no float file to compare with: {error.message}")
        return None
    for name, content in contents.items():
        write_durably(folder / name, content)
    return folder / "float.onnx"


def _make_pt2(work: _Work, request: Request) -> _Made:
    frozen = work.freeze(PLAIN)
    program = work.export(frozen.model)
    for node in program.exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    program.exported.example_inputs = None  # the user's data
    stream = io.BytesIO()
    with quiet():
        torch.export.save(program.exported, stream, extra_files=dict(work.metadata))

    def check(folder: Path) -> Check:
        from quantcfg.export.check import check_program

        with quiet():
            loaded = torch.export.load(folder / request.output.name).module()
        return check_program(_subject(work, frozen, program), loaded)

    return _Made(frozen, {request.output.name: stream.getvalue()}, check, program)


def _make_safetensors(work: _Work, request: Request) -> _Made:
    frozen = work.freeze(PLAIN)
    content = table.to_safetensors(frozen, work.metadata)

    def check(folder: Path) -> Check:
        from quantcfg.export.check import check_tensors

        tensors = table.tensors_of((folder / request.output.name).read_bytes())
        arrays = {name: tensor.numpy() for name, tensor in tensors.items() if name.endswith(_QPARAMS)}
        return check_tensors(_subject(work, frozen, None), arrays)

    rows = to_json(table.to_table(frozen, plan_of(work.model), work.metadata))
    return _Made(frozen, {request.table.name: rows.encode(), request.output.name: content}, check)


def _subject(work: _Work, frozen: FrozenModel, program: Program | None) -> Subject:
    return Subject(work.job, work.float_model, work.model, frozen, program, source_name(work.job))


_MAKERS: dict[str, Callable[[_Work, Request], _Made]] = {
    "onnx": _make_onnx,
    "safetensors": _make_safetensors,
    "pt2": _make_pt2,
}


def _dynamic_axes(program: Program | None) -> tuple[str, ...]:
    if program is None:
        return ()
    return tuple(f"input {index} axis {axis}" for index, axis in sorted(program.axes))
