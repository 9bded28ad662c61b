"""``metrics.jsonl``: one JSON object per line, in the order of the steps, and no times in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantcfg.errors import RunError
from quantcfg.runs.events import EventLog
from quantcfg.runs.reader import read_bytes
from quantcfg.runs.writer import append_line, naming, synchronize, write_text

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

    def read(self) -> list[dict[str, Any]]:
        """The whole lines; a last one that a killed run left torn is passed over."""
        return [row for line in self._lines() if (row := _parse(line)) is not None]

    def rewind(self, step: int, *, evaluated: int | None = None) -> None:
        """Drop the lines after ``step``, and evaluations after the step ``evaluated`` where that is another.

        A resumed run writes them again.
        """
        if not self.writes:
            return
        last = {True: step if evaluated is None else evaluated, False: step}
        kept = [row for row in self.read() if row["step"] <= last["evaluation" in row]]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        if self.events is not None:
            self.events.begin(step)

    def synchronize(self) -> None:
        """Make the lines durable, as a checkpoint has to find them after a power cut.

        Raises:
            RunError: The system refused.
        """
        with naming(self.path), suppress(FileNotFoundError):  # nothing was measured yet
            synchronize(self.path)

    def _lines(self) -> list[str]:
        try:
            return read_bytes(self.path).decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"cannot read '{self.path}': {error.strerror or error}") from error


def _plain(value: Any) -> Any:
    is_strange = isinstance(value, float) and value - value != 0
    return str(value) if is_strange else value


def _scalars(values: Mapping[str, Any], group: str = "training") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, name)
        else:
            yield f"{group}/{name}", float(value)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
