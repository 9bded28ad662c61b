"""The run directory: who may use it, what lies where in it, and in which order it becomes whole.

    config/input.yaml config/overrides.yaml config/resolved.yaml
    plan.json metrics.jsonl log.txt timing.json result.json manifest.json
    checkpoints/<step>/model.safetensors training.safetensors state.json metrics.jsonl manifest.json
    tensorboard/  only where it was asked for
    calib/        only in a qat run that calibrated first: that calibration, a run directory itself

``result.json``, ``plan.json``, ``metrics.jsonl`` and the tensors depend on config, model, data, seed and
versions alone. `VOLATILE` names what a repeated run writes differently: times, and the hashes of those.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantcfg.errors import RunError, UsageError
from quantcfg.runs import lock, manifest
from quantcfg.runs.checkpoint import MODEL
from quantcfg.runs.events import EventLog
from quantcfg.runs.metrics import NAME as METRICS, MetricsLog
from quantcfg.runs.reader import read_bytes, reading
from quantcfg.runs.saver import Saver, settled
from quantcfg.runs.writer import (
    TEMPORARY_MARK,
    naming,
    new_directory,
    remove_directory,
    remove_leftovers,
    write_json,
    write_text,
)

VOLATILE = ("log.txt", "timing.json", "tensorboard", manifest.NAME)
_CONFIG, _CHECKPOINTS, _CALIB, _EVENTS = "config", "checkpoints", "calib", "tensorboard"
_PLAN, _RESULT, _TIMING, _LOG = "plan.json", "result.json", "timing.json", "log.txt"
_FOLDERS = (_CHECKPOINTS, _CALIB, _EVENTS, _CONFIG)
_FILES = (_PLAN, METRICS, _LOG, _TIMING, _RESULT, manifest.NAME)
_ELSEWHERE = "choose another directory with -o"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths of one run and the few ways to change what is there.

    ``resume``: what is there is to be gone on with; otherwise it is to be replaced. ``writes``: this process
    is the one that writes; of several that share a run only one does. ``checkpoint``: the one to go on from,
    where the newest is not wanted. ``events``: who is told what is measured, beside ``metrics.jsonl``.
    """

    path: Path
    resume: bool = False
    writes: bool = True
    checkpoint: Path | None = None
    events: EventLog | None = None
    saver: Saver = field(default_factory=Saver, compare=False, repr=False)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / _CHECKPOINTS

    @property
    def calib(self) -> Path:
        """Where a qat run keeps the calibration that it ran first."""
        return self.path / _CALIB

    @property
    def log(self) -> Path | None:
        """The log: times and sentences, for people; None in a process that does not write."""
        return self.path / _LOG if self.writes else None

    @property
    def metrics(self) -> MetricsLog:
        """What was measured, step by step."""
        return MetricsLog(self.path / METRICS, self.writes, self.events)

    def with_events(self, complain: Callable[[str], None]) -> RunDirectory:
        """The same run with events for TensorBoard; ``complain`` is told when they cannot be written."""
        return replace(self, events=EventLog(self.path / _EVENTS, complain, self.writes))

    @property
    def resolved_config(self) -> Path:
        """The config that the run used, without extends and overrides left to apply."""
        return self.path / _CONFIG / "resolved.yaml"

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end; `verify` tells whether it is still whole."""
        return (self.path / manifest.NAME).is_file()

    @property
    def is_started(self) -> bool:
        """Whether a run left something here to go on from."""
        return self.checkpoints.is_dir() or self.calib.is_dir()

    def begin(self, *, config_files: Mapping[str, str], plan: Any, anew: bool = True) -> None:
        """Write what is known before the first batch: ``config_files`` by name, and the plan.

        What an earlier run left here is removed first: not sooner, so that a run that cannot even begin
        destroys nothing. Without ``anew`` it stays, to be gone on with.
        """
        if not self.writes:
            return
        if anew:
            with naming(self.path):
                self._clear()
        with new_directory(self.path / _CONFIG) as folder:
            for name, text in config_files.items():
                write_text(folder / name, text)
        write_json(self.path / _PLAN, plan)

    def rewrite(self, *, resolved_config: str, plan: Any) -> None:
        """Replace config and plan by those that the run came to."""
        if not self.writes:
            return
        write_text(self.resolved_config, resolved_config)
        write_json(self.path / _PLAN, plan)

    def finish(self, *, result: Any, timing: Any, facts: Mapping[str, Any]) -> None:
        """Write the result and, last of all, the manifest."""
        if not self.writes:
            return
        write_json(self.path / _TIMING, timing)
        write_json(self.path / _RESULT, result)
        manifest.write_manifest(self.path, self._file_names(), **facts)

    def read_result(self) -> dict[str, Any]:
        """``result.json`` of a finished run."""
        return self._read(_RESULT)

    def model_hash(self) -> str:
        """SHA-256 of the tensors that are the result of a finished run."""
        record = manifest.read_manifest(self.path).files[f"{self.read_result()['checkpoint']}/{MODEL}"]
        return record.sha256

    def read_timing(self) -> dict[str, Any]:
        """``timing.json`` of a finished run."""
        return self._read(_TIMING)

    def verify(self) -> manifest.Manifest:
        """Check every file of a finished run.

        Raises:
            UsageError: there is no run here, or it is not finished.
            RunError: something in it was changed or lost.
        """
        if not (self.path / _CONFIG).is_dir():
            hint = "name what quantcfg calib or quantcfg qat wrote, such as runs/config-calib"
            raise UsageError(f"'{self.path}' is not a run directory", hint=hint)
        if not self.is_finished:
            hint = "run its command again" + (" with --resume" if self.is_started else "")
            raise UsageError(f"the run in '{self.path}' is not finished", hint=hint)
        return manifest.verify(self.path)

    def _clear(self) -> None:
        """Remove an earlier run, in an order in which a process that is killed leaves nothing to mistake.

        Without the manifest it is unfinished, and without checkpoints there is nothing to go on from.
        """
        (self.path / manifest.NAME).unlink(missing_ok=True)
        for name in _FOLDERS:
            if os.path.lexists(self.path / name):
                remove_directory(self.path / name)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)

    def _file_names(self) -> list[str]:
        tops = [self.path / name for name in _FILES if name != manifest.NAME]
        with reading(self.path):
            below = [path for name in _FOLDERS for path in (self.path / name).rglob("*")]
            files = [path for path in tops + below if path.is_file() and path.name != lock.NAME]
        names = [path.relative_to(self.path).as_posix() for path in files]
        # What could not be removed is no part of the run: `remove_leftovers` takes it away sometime.
        return [name for name in names if TEMPORARY_MARK not in name]

    def _read(self, name: str) -> dict[str, Any]:
        try:
            document = json.loads(read_bytes(self.path / name))
        except (FileNotFoundError, ValueError) as error:
            raise RunError(f"'{self.path / name}' is damaged: {error}") from error
        assert isinstance(document, dict)
        return document


@contextmanager
def open_run(
    path: Path,
    *,
    resume: bool = False,
    force: bool = False,
    writes: bool = True,
    checkpoint: Path | None = None,
) -> Iterator[RunDirectory]:
    """Lock ``path`` for one run, and refuse what would destroy another.

    A process that does not write touches nothing and leaves that to the one that does.

    A new or empty directory is taken, and one whose run failed before its first checkpoint. ``resume`` goes
    on with an unfinished run, and so does a ``checkpoint`` of it; ``force`` lets `RunDirectory.begin` replace
    one.

    Raises:
        UsageError: the directory is in use, holds a run, or holds files that are no part of one.
    """
    resume = resume or checkpoint is not None
    run = RunDirectory(path, resume, writes, checkpoint)
    _refuse_foreign_checkpoint(run)
    if not writes:
        yield run
        return
    with _created(path), lock.locked(path):
        _refuse_foreign_files(path)
        remove_leftovers(path)
        if resume:
            _refuse_odd_folders(run)
        else:
            _refuse_to_destroy(run, force=force)
        with settled(run.saver):
            yield run


def _refuse_foreign_checkpoint(run: RunDirectory) -> None:
    if run.checkpoint is not None and run.checkpoint.parent != run.checkpoints:
        raise UsageError(
            f"'{run.checkpoint}' is no checkpoint of the run '{run.path}'",
            hint=f"-o names the run, and --checkpoint one of '{run.checkpoints}'",
        )


@contextmanager
def _created(path: Path) -> Iterator[None]:
    """Make the directory; take it away again when the run failed before writing anything."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make '{path}': {error.strerror}", hint=_ELSEWHERE) from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty: something of worth is in it
            for folder in missing:
                folder.rmdir()
        raise


def _refuse_foreign_files(path: Path) -> None:
    known = {*_FOLDERS, *_FILES, lock.NAME}
    foreign = sorted(p.name for p in path.iterdir() if p.name not in known and TEMPORARY_MARK not in p.name)
    if foreign:
        shown = ", ".join(f"'{name}'" for name in foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise UsageError(f"'{path}' holds files that are no part of a run: {shown}", hint=_ELSEWHERE)


def _refuse_odd_folders(run: RunDirectory) -> None:
    """Behind a link nothing is part of the run: its manifest would not name it."""
    for folder in (run.checkpoints, run.calib):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            what = "a link" if folder.is_symlink() else "something else"
            raise UsageError(
                f"'{folder}' has to be a directory and is {what}",
                hint="put back the directory that the run had there; --force starts again",
            )


def _refuse_to_destroy(run: RunDirectory, *, force: bool) -> None:
    if force:
        return
    if run.is_finished:
        hint = "--force replaces it; -o names another directory"
        raise UsageError(f"'{run.path}' already holds a finished run", hint=hint)
    if run.is_started:
        hint = "--resume goes on with it, --force starts again; -o names another directory"
        raise UsageError(f"'{run.path}' holds an unfinished run", hint=hint)
