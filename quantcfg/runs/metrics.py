"""``metrics.jsonl``: one JSON object per line, in the order of the steps, and no times in it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantcfg.runs.events import EventLog
from quantcfg.runs.reader import read_bytes
from quantcfg.runs.writer import append_line, write_bytes

NAME = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class MetricsLog:
    """Appends what was measured after each step, in the one process that ``writes``, and tells ``events``."""

    path: Path
    writes: bool = True
    events: EventLog | None = None

    def append(self, *, step: int, **values: Any) -> None:
        """Write one line. Floats that are not finite become their names: JSON has no word for them."""
        if self.writes:
            append_line(self.path, json.dumps({"step": step} | {k: _plain(v) for k, v in values.items()}))
        if self.events is not None:
            self.events.append(step, dict(_scalars(values)))

    def content(self) -> bytes:
        """All lines, as a checkpoint keeps them.

        Raises:
            RunError: they cannot be read.
        """
        try:
            return read_bytes(self.path)
        except FileNotFoundError:  # nothing was measured yet
            return b""

    def rewind(self, step: int = -1, content: bytes = b"") -> None:
        """Start with the lines of the checkpoint of ``step``, whatever a run has left here after it."""
        if self.writes:
            write_bytes(self.path, content)
        if self.writes and self.events is not None:
            self.events.begin(step)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(values: Mapping[str, Any], group: str = "training") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, name)
        else:
            yield f"{group}/{name}", float(value)
