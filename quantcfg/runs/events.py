"""Event files for TensorBoard: what ``metrics.jsonl`` says, for those who asked for it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from quantcfg.errors import RunError, UsageError
from quantcfg.runs.writer import append_bytes, naming

_NAME = "events.out.tfevents."  # TensorBoard reads what has this in its name, in the order of the names
_VERSION = "brain.Event:2"  # the first in which a start takes back what earlier files say of later steps


def require_tensorboard() -> None:
    """See to it that the package is there before a run begins.

    Raises:
        UsageError: it is not, or a part of it is not.
    """
    try:
        _Protocol.load()
    except ImportError as error:
        raise UsageError(
            f"--tensorboard needs the package tensorboard: {error.msg}",
            hint="pip install 'quantcfg[tensorboard]'",
        ) from error


@dataclass(frozen=True, slots=True)
class _Protocol:
    """The parts of the package that events are made with: none starts a thread or keeps a file open."""

    event: Any
    session_log: Any
    summary: Any
    record_writer: Any

    @classmethod
    def load(cls) -> _Protocol:
        events = import_module("tensorboard.compat.proto.event_pb2")
        summaries = import_module("tensorboard.compat.proto.summary_pb2")
        records = import_module("tensorboard.summary.writer.record_writer")
        return cls(events.Event, events.SessionLog, summaries.Summary, records.RecordWriter)

    def record(self, step: int, **content: Any) -> bytes:
        """One event as a file holds it."""
        stream = io.BytesIO()
        event = self.event(wall_time=time.time(), step=step, **content)
        self.record_writer(stream).write(event.SerializeToString())
        return stream.getvalue()


@dataclass(slots=True)
class EventLog:
    """Writes scalars below ``folder``, in a file for each time that the run is begun or gone on with.

    Each event is written at once, so that a killed run loses none. One that cannot be written ends the
    writing and not the run, whose figures are in ``metrics.jsonl`` as well: ``complain`` is told, once.
    """

    folder: Path
    complain: Callable[[str], None]
    writes: bool = True
    _file: Path | None = field(default=None, init=False)

    def begin(self, step: int) -> None:
        """Begin a file that takes back what earlier ones say of the steps after ``step``."""
        if self.writes:
            self._try(lambda: self._begin(step))

    def append(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write values by their tags."""
        if self._file is not None:
            self._try(lambda: self._append(step, scalars))

    def _begin(self, step: int) -> None:
        protocol = _Protocol.load()
        with naming(self.folder):
            self.folder.mkdir(exist_ok=True)
            earlier = sum(path.name.startswith(_NAME) for path in self.folder.iterdir())
        self._file = self.folder / f"{_NAME}{earlier:06d}"
        start = protocol.session_log(status=protocol.session_log.START)
        version = protocol.record(step + 1, file_version=_VERSION)
        append_bytes(self._file, version + protocol.record(step + 1, session_log=start))

    def _append(self, step: int, scalars: Mapping[str, float]) -> None:
        assert self._file is not None
        protocol = _Protocol.load()
        values = [protocol.summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        append_bytes(self._file, protocol.record(step, summary=protocol.summary(value=values)))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except RunError as error:
            self._file = None
            self.complain(f"TensorBoard gets no more events: {error.message}")
