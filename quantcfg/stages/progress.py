"""What a stage tells whoever watches it. The drawing is elsewhere: nothing here knows a terminal."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol, TypeAlias

Unit: TypeAlias = Literal[
    "batch", "step"
]  # a step of the optimizer has several batches where they accumulate


class Task(Protocol):
    """Work of known or unknown length, under way."""

    def advance(self, **values: float) -> None:
        """One more unit is done; ``values`` are the newest loss, metric or learning rate, by name."""


class Progress(Protocol):
    """Draws tasks and passes on sentences."""

    def task(
        self, title: str, total: int | None, *, done: int = 0, unit: Unit = "batch"
    ) -> AbstractContextManager[Task]:
        """Begin a task of ``total`` units (None: unknown), of which a resumed run had ``done`` before."""

    def note(self, sentence: str) -> None:
        """Say something that the user should know and that is no part of the result."""


class Silence:
    """The progress of a run that nobody watches."""

    def task(
        self, title: str, total: int | None, *, done: int = 0, unit: Unit = "batch"
    ) -> AbstractContextManager[Task]:
        """Begin a task that is not drawn."""
        del title, total, done, unit
        return nullcontext(self)

    def advance(self, **values: float) -> None:
        """Draw nothing."""

    def note(self, sentence: str) -> None:
        """Say nothing."""
