"""What differs between two finished runs beside their configs: origin, surroundings, data and outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantcfg.config.compare import ABSENT, Change
from quantcfg.runs.directory import RunDirectory

_MADE_OF = ("stage", "seed", "weights", "calibration", "model_file", "data", "git")
_MADE_IN = ("device", "threads", "system", "versions")
_RESULTS = ("metrics", "num_batches", "num_samples", "num_steps", "num_epochs", "best_step", "skipped")
_HASH = 64  # hexadecimal digits of SHA-256
_RUN = "run"


def compare_runs(before: Path, after: Path) -> list[Change]:
    """The facts and results that differ, when both paths hold finished runs.

    Raises:
        RunError: a run is damaged.
    """
    runs = [RunDirectory(path) for path in (before, after)]
    if not all(run.path.is_dir() and run.is_finished for run in runs):
        return []
    old, new = (dict(_facts(run)) for run in runs)
    return [
        Change(name, _text(old.get(name)), _text(new.get(name)), _RUN)
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]


def _facts(run: RunDirectory) -> Iterator[tuple[str, Any]]:
    facts, result = run.verify().facts, run.read_result()
    for name in (*_MADE_OF, *_MADE_IN):
        yield from _flat(name, facts.get(name))
    yield "trained model" if result["stage"] == "qat" else "calibrated model", run.model_hash()
    for name in _RESULTS:
        yield from _flat(name, result.get(name))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}", item)
    elif value is not None:
        yield name, value


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    text = str(value)
    return text[:12] if len(text) == _HASH and isinstance(value, str) else text
