"""Checkpoints: ``checkpoints/<step>/``, tensors in safetensors, the rest in JSON, a manifest over both."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from quantcfg.errors import RunError
from quantcfg.runs.manifest import record_of, verify, write_records
from quantcfg.runs.reader import read_bytes, reading
from quantcfg.runs.tree import detached_copy, join_tensors, split_tensors
from quantcfg.runs.writer import new_directory, remove_directory, to_json, write_bytes

MODEL, _TRAINING, _STATE = "model.safetensors", "training.safetensors", "state.json"
_METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A stage stopped between two steps.

    ``model`` is the model's state_dict; ``state`` is everything else by name (position, optimizer, scheduler,
    random generators), of plain values and tensors. ``facts`` are no part of it: they say what it was made
    with, in plain values, and stand in its manifest. ``metrics`` are the lines of the log of that name so
    far: the run appends to it after the checkpoint was made, and may be killed while it does.
    """

    step: int
    model: Mapping[str, Tensor]
    state: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    metrics: bytes = b""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint that shares memory with nothing: what trains may train on while it is written."""

    step: int
    model: Mapping[str, Tensor]
    training: Mapping[str, Tensor]
    document: Any
    facts: Mapping[str, Any]
    metrics: bytes

    def files(self) -> dict[str, bytes]:
        """The content of each file."""
        state = to_json({"step": self.step, "state": self.document}).encode()
        tensors = {MODEL: save(dict(self.model)), _TRAINING: save(dict(self.training))}
        return tensors | {_STATE: state, _METRICS: self.metrics}


def snapshot(checkpoint: Checkpoint) -> Snapshot:
    """Copy a checkpoint out of the model and the optimizer.

    Raises:
        RunError: Its state holds something that a checkpoint has no place for.
    """
    document, tensors = split_tensors(checkpoint.state)
    model = {name: detached_copy(tensor) for name, tensor in checkpoint.model.items()}
    return Snapshot(checkpoint.step, model, tensors, document, checkpoint.facts, checkpoint.metrics)


def write_snapshot(folder: Path, taken: Snapshot) -> Path:
    """Write ``folder/<step>`` under a temporary name, read it back, and only then give it its own.

    Raises:
        RunError: The disk refused, or what was read back differs from what was to be written.
    """
    target, files = folder / str(taken.step), taken.files()
    with new_directory(target) as temporary:
        for name, data in files.items():
            write_bytes(temporary / name, data)
        records = {name: record_of(data) for name, data in files.items()}
        write_records(temporary, records, step=taken.step, **taken.facts)
        verify(temporary)
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Verify ``path`` against its manifest, then read it.

    Raises:
        RunError: Damaged, unfinished, or not the step that its name says.
    """
    if path.is_symlink():
        raise RunError(f"'{path}' is a link: a checkpoint lies in the directory of its run")
    facts = dict(verify(path).facts)
    step = facts.pop("step", None)
    try:
        document = json.loads(read_bytes(path / _STATE))
        model, tensors = load(read_bytes(path / MODEL)), load(read_bytes(path / _TRAINING))
        state = join_tensors(document["state"], tensors)
        checkpoint = Checkpoint(document["step"], model, state, facts, read_bytes(path / _METRICS))
    except (FileNotFoundError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(f"'{path}' is damaged: {error}") from error
    if not str(checkpoint.step) == path.name == str(step):
        raise RunError(f"'{path}' holds step {checkpoint.step}: it was moved or renamed")
    return checkpoint


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """The newest valid checkpoint in ``folder``, and what was wrong with each newer one."""
    skipped: list[str] = []
    for path in reversed(checkpoint_paths(folder)):
        try:
            return load_checkpoint(path), tuple(skipped)
        except RunError as error:
            skipped.append(error.message)
    return None, tuple(skipped)


def checkpoint_paths(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, valid or not, oldest first."""
    if not folder.is_dir():
        return []
    with reading(folder):
        paths = [path for path in folder.iterdir() if path.name.isdecimal()]
    return sorted(paths, key=lambda path: int(path.name))


def drop_newer_checkpoints(folder: Path, step: int) -> None:
    """Delete what lies after ``step``, from where a run goes on: it will be written again."""
    for path in checkpoint_paths(folder):
        if int(path.name) > step:
            remove_directory(path)


def prune_checkpoints(folder: Path, *, keep: int, spare: Collection[int] = ()) -> None:
    """Delete all but the newest ``keep`` and those of the steps to ``spare``.

    Call it after a save, which has read the newest one back.
    """
    for path in checkpoint_paths(folder)[:-keep]:
        if int(path.name) not in spare:
            remove_directory(path)
