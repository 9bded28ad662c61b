"""The best of a fixed list of percentiles."""

from __future__ import annotations

from typing import final

from quantcfg.numeric.histogram import Batch, Histogram
from quantcfg.numeric.observers.histogram_family import HistogramObserver
from quantcfg.numeric.observers.records import Range
from quantcfg.numeric.solve import best_range, percentile_range

PERCENTILES = (99.9, 99.95, 99.99, 99.993, 99.995, 99.997, 99.999, 99.9995, 99.9999)


@final
class MixObserver(HistogramObserver):
    """Cuts the range at that one of nine percentiles whose squared quantization error is least.

    The candidates are 99.9, 99.95, 99.99, 99.993, 99.995, 99.997, 99.999, 99.9995 and 99.9999; of equals the
    tightest is taken. Each is the range that `PercentileObserver` gives.
    """

    def _solve(self, histogram: Histogram | Batch, ends: Range) -> Range:
        magnitudes = histogram.magnitudes(ends[0].abs().maximum(ends[1].abs()))
        total = int(histogram.total)
        ranges = [percentile_range(magnitudes, ends, percentile, total) for percentile in PERCENTILES]
        return best_range(histogram.distribution(*ends), ranges, self.grid)
