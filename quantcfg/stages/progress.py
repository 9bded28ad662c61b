"""What a stage tells whoever watches it. The drawing is elsewhere: nothing here knows a terminal."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """Work of known or unknown length, under way."""

    def advance(self, **values: float) -> None:
        """One more batch is done; ``values`` are the newest loss, metric or learning rate, by name."""


class Progress(Protocol):
    """Draws tasks and passes on sentences."""

    def task(self, title: str, total: int | None, *, done: int = 0) -> AbstractContextManager[Task]:
        """Begin a task of ``total`` batches (None: unknown), of which a resumed run had ``done`` before."""

    def note(self, sentence: str) -> None:
        """Say something that the user should know and that is no part of the result."""


class Silence:
    """The progress of a run that nobody watches."""

    def task(self, title: str, total: int | None, *, done: int = 0) -> AbstractContextManager[Task]:
        """Begin a task that is not drawn."""
        del title, total, done
        return nullcontext(self)

    def advance(self, **values: float) -> None:
        """Draw nothing."""

    def note(self, sentence: str) -> None:
        """Say nothing."""
