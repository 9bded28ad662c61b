"""The range that quantizes with the least squared error."""

from __future__ import annotations

from typing import Any, final

from quantcfg.numeric.observers.histogram_family import HistogramObserver


@final
class MSEObserver(HistogramObserver):
    """Shrinks the range of the data by the ratio of least squared quantization error, per channel its own.

    ``stride`` thins the first look at the ratios 1, 0.99, ..., 0.06; what follows is as close for any stride
    (see `quantcfg.numeric.solve.mse_range`).

    Raises:
        ValueError: ``stride`` is not in [1, 20].
    """

    kind = "mse"
    own_parameters = ("stride",)

    def __init__(self, *, stride: int = 1, **shared: Any) -> None:
        super().__init__(**shared)
        if not 1 <= stride <= 20:
            raise ValueError(f"stride must be in [1, 20] (got {stride})")
        self.stride = stride

    @property
    def _own(self) -> tuple[float, ...]:
        return (self.stride,)
