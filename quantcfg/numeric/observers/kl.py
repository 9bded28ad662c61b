"""The range that loses the least information."""

from __future__ import annotations

from typing import Any, final

from quantcfg.numeric.dtypes import QuantDType, as_dtype
from quantcfg.numeric.observers.histogram_family import HistogramObserver


@final
class KLObserver(HistogramObserver):
    """Cuts the range where the Kullback-Leibler divergence of the quantized distribution is least.

    The magnitudes are sorted into ``bins`` equal bins and compared with the same in as many levels as the
    grid has for a magnitude, 2**(num_bits - 1); the steps are in `quantcfg.numeric.divergence.kl_range`.
    With as many levels as bins the two are the same and nothing can be learnt: wide dtypes are refused.

    ``update_interval`` is accepted for the reference's configs: it is the number of batches between two
    estimates there. Here the whole stream gives one, and an ``averaging_constant`` one per batch, so that no
    interval leaves a quantizer without a range.

    Raises:
        ValueError: ``bins`` is not in [256, 8192] or below 2**num_bits, or ``update_interval`` below 1.

    Reference:
        Migacz 2017, 8-bit inference with TensorRT, GTC; smoothing and bins as in the reference toolkit.
    """

    kind = "kl"
    own_parameters = ("bins", "update_interval")

    def __init__(self, *, bins: int = 512, update_interval: int = 1, **shared: Any) -> None:
        super().__init__(top_bits=min(12, bins.bit_length()), **shared)
        if not 256 <= bins <= 8192:
            raise ValueError(f"bins must be in [256, 8192] (got {bins})")
        if update_interval < 1:
            raise ValueError(f"update_interval must be at least 1 (got {update_interval})")
        self.bins = bins
        self.update_interval = update_interval
        self._check_dtype(self.dtype)

    def reset_dtype(self, dtype: str | QuantDType) -> None:
        """Change to the full grid of another dtype and solve again for it; the statistics stay.

        Raises:
            ValueError: the dtype is too wide for the bins.
        """
        self._check_dtype(as_dtype(dtype))
        super().reset_dtype(dtype)

    def _check_dtype(self, dtype: QuantDType) -> None:
        if (1 << dtype.num_bits) > self.bins:
            raise ValueError(
                f"kl cannot choose a range for {dtype}: {self.bins} bins do not tell its levels apart; "
                f"use mse, or at least {1 << dtype.num_bits} bins"
            )

    @property
    def _own(self) -> tuple[float, ...]:
        return (1 << (self.dtype.num_bits - 1), self.bins)
