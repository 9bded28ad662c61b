"""How long the phases of a run took, kept apart from its result."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SAVE_INTERVAL_S = 600.0  # what a killed run loses at most, beside one step


@dataclass(slots=True)
class SaveTimer:
    """Says when a checkpoint is due that nothing but the time asks for. No result depends on it."""

    last: float = field(default_factory=time.monotonic)

    def is_due(self) -> bool:
        """Whether the interval is over; if so, the next one begins."""
        if time.monotonic() - self.last < SAVE_INTERVAL_S:
            return False
        self.last = time.monotonic()
        return True


@dataclass(slots=True)
class Clock:
    """Adds up seconds by the name of a phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.perf_counter, init=False)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block under ``name``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def timing(self) -> dict[str, float]:
        """Seconds by phase, and in total since the clock was made."""
        named = {f"{name}_s": round(seconds, 3) for name, seconds in self.seconds.items()}
        return named | {"total_s": round(time.perf_counter() - self._began, 3)}
