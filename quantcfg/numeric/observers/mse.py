"""The range that quantizes with the least squared error."""

from __future__ import annotations

from typing import Any, final

from quantcfg.numeric.observers.histogram_family import HistogramObserver


@final
class MSEObserver(HistogramObserver):
    """Shrinks the range of the data by the ratio of least squared quantization error, per channel its own.

    The error is within 0.5 % of that of the best of the ratios 0.001, 0.002, ..., 1 where the values are
    known one by one: a stream of up to 15,362 different values (8,418 per channel; fewer from 499 channels
    on, see `quantcfg.numeric.histogram.Histogram`), or a single batch of up to 16,384 values per channel, be
    it a weight of 100,000 channels. A longer stream is known by the bins it fell into. What is measured
    there is, over streams of 9,000 to 140,000 values per channel of six distributions:

        channels        values per channel    4 bit     8 bit
        up to 498       any                   0.5 %     0.5 %
        499 to 966      30,000 or more        0.5 %     0.5 %
                        fewer                 0.5 %     1.5 %
        967 to 3,231    100,000 or more       0.5 %     1 %
                        fewer                 0.5 %     5 %

    Beyond, or with another dtype given afterwards, nothing is promised for a stream of several batches.

    ``stride`` is accepted for the reference's configs, where it thins the search: here every look costs so
    little that none is left out.

    Raises:
        ValueError: ``stride`` is not in [1, 95].
    """

    kind = "mse"
    own_parameters = ("stride",)

    def __init__(self, *, stride: int = 1, **shared: Any) -> None:
        super().__init__(**shared)
        if not 1 <= stride <= 95:
            raise ValueError(f"stride must be in [1, 95] (got {stride})")
        self.stride = stride

    @property
    def _own(self) -> tuple[float, ...]:
        return ()
