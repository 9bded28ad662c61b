"""``metrics.jsonl``: one JSON object per line, in the order of the steps, and no times in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
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
        """The whole lines; those that are torn or damaged are passed over."""
        return [row for row in self._rows() if row is not None]

    def rewind(self, step: int, *, evaluated: int | None = None) -> list[int]:
        """Drop the lines after ``step``, and evaluations after the step ``evaluated`` where that is another.

        A resumed run writes them again. Not so those that are damaged: their numbers are given.
        """
        if not self.writes:
            return []
        last = {True: step if evaluated is None else evaluated, False: step}
        rows = self._rows()
        before = list(takewhile(lambda row: row is None or row["step"] <= step, rows))
        kept = [row for row in before if row is not None and row["step"] <= last["evaluation" in row]]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        if self.events is not None:
            self.events.begin(step)
        return [number for number, row in enumerate(before, 1) if row is None]

    def synchronize(self) -> None:
        """Make the lines durable, as a checkpoint has to find them after a power cut.

        Raises:
            RunError: The system refused.
        """
        with naming(self.path), suppress(FileNotFoundError):  # nothing was measured yet
            synchronize(self.path)

    def _rows(self) -> list[dict[str, Any] | None]:
        """The lines, None for a damaged one. A last one without an end is what a killed run left: no line."""
        *lines, _ = self._text().split("\n")
        return [_parse(line) for line in lines]

    def _text(self) -> str:
        try:
            return read_bytes(self.path).decode(errors="replace")
        except FileNotFoundError:
            return ""
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
