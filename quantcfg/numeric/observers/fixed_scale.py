"""A range that the user states instead of observing it."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from quantcfg.numeric.dtypes import QuantDType
from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.qparams import EPS, QParams


@final
class FixedScaleObserver(Observer):
    """The given scale and zero point, whatever the data.

    Said either way:

        scale      real units per integer step
        threshold  the magnitude that the grid must reach: scale = threshold / max(-quant_min, quant_max)

    Without either the scale is 1. Data is not looked at, a loaded range is ignored. `reset_dtype` keeps the
    range and not the scale: 1/32768 on qint16 becomes 1/128 on qint8.

    Raises:
        ValueError: both are given, the scale is not finite and at least 2**-23, or the zero point is off the
            grid or not 0 with a symmetric qscheme.
    """

    own_parameters = ("scale", "zero_point")

    def __init__(
        self,
        *,
        scale: float | None = None,
        threshold: float | None = None,
        zero_point: int = 0,
        averaging_constant: float | None = 0.0,
        **shared: Any,
    ) -> None:
        super().__init__(averaging_constant=averaging_constant, **shared)
        self.records = None
        if scale is not None and threshold is not None:
            raise ValueError(f"give scale or threshold, not both (got {scale} and {threshold})")
        if threshold is not None:
            scale = threshold / self._reach
        self.scale = 1.0 if scale is None else float(scale)
        self.zero_point = zero_point
        self._check()
        self._set_range()

    def forward(self, x: Tensor) -> None:
        """Take no notice of ``x``."""

    def qparams(self) -> QParams:
        """The scale and zero point that were given."""
        scale = torch.full_like(self.min_val, self.scale)
        return QParams(scale, torch.full_like(scale, self.zero_point, dtype=torch.int32))

    def load_range(self, min_val: Tensor, max_val: Tensor) -> None:
        """Keep the scale that was given."""

    def merge(self, *others: Observer) -> None:
        """Nothing to add: every observer of these parameters is the same."""
        for other in others:
            self._check_mergeable(other)

    def reset_dtype(self, dtype: str | QuantDType) -> None:
        """Change to the full grid of another dtype, over the same range."""
        reach = self._reach
        super().reset_dtype(dtype)
        self.scale *= reach / self._reach
        self.zero_point = min(max(self.zero_point, self.quant_min), self.quant_max)
        self._set_range()

    @property
    def _reach(self) -> int:
        return max(-self.quant_min, self.quant_max)

    def _check(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= EPS):
            raise ValueError(f"scale must be finite and at least {EPS} (got {self.scale})")
        if self.symmetric and self.zero_point != 0:
            raise ValueError(f"zero_point must be 0 with a symmetric qscheme (got {self.zero_point})")
        if not self.quant_min <= self.zero_point <= self.quant_max:
            grid = f"[{self.quant_min}, {self.quant_max}]"
            raise ValueError(f"zero_point must lie on the grid {grid} (got {self.zero_point})")

    def _set_range(self) -> None:
        """The range whose qparams these are."""
        levels = self.quant_max - self.quant_min
        low = -levels / 2 if self.symmetric else self.quant_min - self.zero_point
        self.min_val.fill_(low * self.scale)
        self.max_val.fill_((low + levels) * self.scale)
