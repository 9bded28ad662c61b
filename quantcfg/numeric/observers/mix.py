"""The best of a fixed list of percentiles."""

from __future__ import annotations

from typing import final

from quantcfg.numeric.observers.histogram_family import HistogramObserver


@final
class MixObserver(HistogramObserver):
    """Cuts the range at that one of nine percentiles whose squared quantization error is least.

    The candidates are 99.9, 99.95, 99.99, 99.993, 99.995, 99.997, 99.999, 99.9995 and 99.9999; of equals the
    tightest is taken. Each is the range that `PercentileObserver` gives.
    """

    kind = "mix"

    @property
    def _own(self) -> tuple[float, ...]:
        return ()
