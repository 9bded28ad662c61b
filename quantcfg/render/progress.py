"""Progress of a stage: bars on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress as Bars,
    ProgressColumn,
    SpinnerColumn,
    Task as RichTask,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from quantcfg.config.suggest import counted
from quantcfg.render.console import message_console, say

_INTERVAL = 5.0  # seconds between plain lines
_FRAME = 0.1  # seconds between two states of a bar
_PLURALS = {"batch": "batches", "step": "steps"}


class _Task(Protocol):
    def advance(self, **values: float) -> None: ...


class BarProgress:
    """Bars that vanish when the task is done.

    They are drawn as the work goes on, and not by a thread: a worker of a DataLoader, forked while a thread
    draws, would wait for its locks for ever as soon as it prints something.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, title: str, total: int | None, *, done: int = 0, unit: str = "batch") -> Iterator[_Task]:
        """Draw a bar during the block."""
        del unit  # a bar shows how many, and not of what
        with Bars(*_columns(), console=self._console, transient=True, auto_refresh=False) as bars:
            yield _BarTask(bars, bars.add_task(title, total=total, completed=done, values=""))

    def note(self, sentence: str) -> None:
        """Print a note above the bars."""
        say("note", sentence)


@dataclass(slots=True)
class _BarTask:
    bars: Bars
    task: TaskID
    drawn: float = field(default_factory=lambda: time.monotonic())

    def advance(self, **values: float) -> None:
        is_due = time.monotonic() - self.drawn >= _FRAME
        self.bars.update(self.task, advance=1, values=_text(values), refresh=is_due)
        if is_due:
            self.drawn = time.monotonic()


class LineProgress:
    """Plain lines on stderr: one every few seconds, and one when the task is done."""

    @contextmanager
    def task(self, title: str, total: int | None, *, done: int = 0, unit: str = "batch") -> Iterator[_Task]:
        """Print lines during the block and one at its end."""
        task = _LineTask(title, total, done, done, unit)
        yield task
        task.say(f"{task.elapsed():.1f} s")

    def note(self, sentence: str) -> None:
        """Print a note."""
        say("note", sentence)


@dataclass(slots=True)
class _LineTask:
    title: str
    total: int | None
    begun_at: int
    done: int
    unit: str
    values: str = ""
    began: float = field(default_factory=lambda: time.monotonic())
    last: float = field(default_factory=lambda: time.monotonic())

    def advance(self, **values: float) -> None:
        self.done += 1
        self.values = _text(values) or self.values
        if time.monotonic() - self.last >= _INTERVAL:
            self.last = time.monotonic()
            self.say(self._remaining())

    def say(self, ending: str) -> None:
        amount = counted(self.total or self.done, self.unit, _PLURALS[self.unit])
        of = f"{self.done}/" if self.total else ""
        parts = (f"{self.title}: {of}{amount}", self.values, ending)
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def _remaining(self) -> str:
        rate = _rate((self.done - self.begun_at) / max(self.elapsed(), 1e-9))
        if not self.total:
            return f"{rate}, {self.elapsed():.0f} s so far"
        left = (self.total - self.done) * self.elapsed() / max(1, self.done - self.begun_at)
        return f"{rate}, {left:.0f} s left"


def progress_on_stderr(*, quiet: bool) -> BarProgress | LineProgress | QuietProgress:
    """What suits the stream: bars, lines, or nothing but notes."""
    if quiet:
        return QuietProgress()
    console = message_console()
    draws = console.is_terminal and not console.is_dumb_terminal
    return BarProgress(console) if draws else LineProgress()


class QuietProgress:
    """No progress and no notes."""

    @contextmanager
    def task(self, title: str, total: int | None, *, done: int = 0, unit: str = "batch") -> Iterator[_Task]:
        """Draw nothing."""
        del title, total, done, unit
        yield self

    def advance(self, **values: float) -> None:
        """Draw nothing."""

    def note(self, sentence: str) -> None:
        """Say nothing."""


class _RateColumn(ProgressColumn):
    """How many batches or steps a second."""

    def render(self, task: RichTask) -> Text:
        """The rate of the last seconds; nothing before the first ones."""
        return Text(_rate(task.speed) if task.speed else "")


def _rate(per_second: float) -> str:
    return f"{per_second:.3g}/s"


def _columns() -> tuple[ProgressColumn, ...]:
    text, values = (
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[values]}", markup=False),
    )
    return (
        SpinnerColumn(),
        text,
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        _RateColumn(),
        values,
    )


def _text(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
