"""Which of the evaluated models of a training is kept, and whether to wait for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from quantcfg.config.training import Best
from quantcfg.errors import UsageError


@dataclass(slots=True)
class Selection:
    """The newest evaluation and the best one. Without a ``section`` the newest is the one that counts.

    ``step`` and ``best_step`` are the optimizer steps after which the two were made; ``waited`` counts the
    evaluations since the best one.
    """

    section: Best | None
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    waited: int = 0

    def check(self, metrics: Mapping[str, float]) -> None:
        """Refuse, before anything is trained, a metric that is not among ``metrics``.

        Raises:
            UsageError: the evaluation gives other metrics, or there is none.
        """
        if self.section is not None and self.section.metric not in metrics:
            given = ", ".join(f"'{name}'" for name in metrics) or "none: the model file has no eval_data()"
            raise UsageError(f"qat.best.metric is '{self.section.metric}'; the metrics are {given}")

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Note the evaluation after ``step``."""
        self.check(metrics)
        self.metrics, self.step = dict(metrics), step
        if self.section is None:
            return
        if self._is_better(metrics[self.section.metric]):
            self.best_metrics, self.best_step, self.waited = dict(metrics), step, 0
        else:
            self.waited += 1

    @property
    def is_exhausted(self) -> bool:
        """Whether a better one was waited for long enough."""
        patience = self.section.patience if self.section is not None else None
        return patience is not None and self.waited >= patience

    def kept(self, last: int) -> tuple[int, dict[str, float]]:
        """The step whose model is kept, and its metrics: the ``last`` one when no evaluation was a best."""
        return (last, self.metrics) if self.best_step is None else (self.best_step, self.best_metrics)

    def state(self) -> dict[str, Any]:
        """What was noted, as plain values."""
        return {name: value for name, value in asdict(self).items() if name != "section"}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        for name, value in state.items():
            setattr(self, name, value)

    def _is_better(self, value: float) -> bool:
        assert self.section is not None
        if self.best_step is None:
            return not math.isnan(value)
        best = self.best_metrics[self.section.metric]
        return value > best if self.section.mode == "max" else value < best
