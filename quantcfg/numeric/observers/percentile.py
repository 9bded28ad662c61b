"""The range cut at a percentile of the magnitudes."""

from __future__ import annotations

from typing import Any, final

from quantcfg.numeric.observers.histogram_family import HistogramObserver


@final
class PercentileObserver(HistogramObserver):
    """Cuts the range at the magnitude that ``percentile`` % of the values do not exceed.

        low = max(min, -magnitude),  high = min(max, magnitude)

    The magnitude is the value of that rank itself while the stream is short (see `Histogram`). Beyond, it is
    the middle of the bin that holds that value: off by no more than 1 / ``bins`` of the largest magnitude,
    nor by more than 1/256 of itself (1/16 per channel, or with 16 ``bins``). 100 is the range of the data,
    exactly.

    Raises:
        ValueError: ``percentile`` is not in (0, 100], or ``bins`` not in [16, 4096].
    """

    kind = "percentile"
    own_parameters = ("percentile", "bins")

    def __init__(self, *, percentile: float = 99.99, bins: int = 2048, **shared: Any) -> None:
        if not 16 <= bins <= 4096:
            raise ValueError(f"bins must be in [16, 4096] (got {bins})")
        super().__init__(top_bits=(bins - 1).bit_length() - 1, **shared)
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile must be in (0, 100] (got {percentile})")
        self.percentile = percentile
        self.bins = bins

    @property
    def _own(self) -> tuple[float, ...]:
        return (self.percentile,)
