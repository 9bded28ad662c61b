"""The range of the data, kept inside fixed ends."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.observers.records import Range


@final
class ClipObserver(Observer):
    """The range of the data with both ends clamped to ``[xmin, xmax]`` after each batch is folded in.

    Data that lies outside altogether gives the range of the one point of ``[xmin, xmax]`` next to it.

    Raises:
        ValueError: ``xmin`` is above ``xmax``, or one of them is not finite.
    """

    own_parameters = ("xmin", "xmax")

    def __init__(
        self,
        *,
        xmin: float = -1.0,
        xmax: float = 1.0,
        averaging_constant: float | None = 1.0,
        **shared: Any,
    ) -> None:
        super().__init__(averaging_constant=averaging_constant, **shared)
        if not float("-inf") < xmin <= xmax < float("inf"):
            raise ValueError(f"xmin and xmax must be finite with xmin <= xmax (got {xmin} and {xmax})")
        self.xmin = xmin
        self.xmax = xmax

    def load_range(self, min_val: Tensor, max_val: Tensor) -> None:
        """See `Observer.load_range`; both ends are clamped, as those of a batch would be."""
        super().load_range(self._clamp(min_val), self._clamp(max_val))

    def _step(self, state: Range, batch: Range) -> Range:
        low, high = super()._step(state, batch)
        return self._clamp(low), self._clamp(high)

    def _clamp(self, bound: Tensor) -> Tensor:
        # An observer that has seen nothing keeps its +inf and -inf.
        return bound.clamp(self.xmin, self.xmax).where(bound.isfinite(), bound)
