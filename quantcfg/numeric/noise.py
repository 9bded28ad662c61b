"""How much a range loses on what was counted: the noise of quantization as a part of the signal."""

from __future__ import annotations

import torch
from torch import Tensor

from quantcfg.numeric.distributions import Distribution, Points
from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.observers.histogram_family import HistogramObserver
from quantcfg.numeric.solve import Grid, squared_error


def noise_of(observer: Observer, counted: HistogramObserver) -> float:
    """The quantization noise of the range of ``observer`` on the values that ``counted`` has seen.

        sum of (fake_quantize(x) - x)**2 / sum of x**2

    Over all channels together. Exact for a short stream, else as fine as the bins (see `squared_error`).
    0.0 where every value is 0.

    Raises:
        ValueError: ``counted`` keeps no histogram.
    """
    if counted.histogram is None:
        raise ValueError("ranges of single batches were averaged, which keeps no histogram")
    distribution = counted.histogram.distribution(counted.low, counted.high)
    grid = Grid(observer.quant_min, observer.quant_max, observer.symmetric)
    qparams = observer.qparams()
    columns = type(qparams)(*(part[:, None] for part in qparams))
    noise = squared_error(distribution, columns, grid).sum()
    signal = sum_of_squares(distribution).sum()
    return float(noise / signal) if signal > 0 else 0.0


def sum_of_squares(distribution: Distribution) -> Tensor:
    """The sum of x**2 per channel, float64 ``(C,)``; within a bin values count as spread evenly."""
    if isinstance(distribution, Points):
        return (distribution.values.square() * distribution.counts).sum(1)
    low, high = distribution.edges[:, :-1], distribution.edges[:, 1:]
    mean_square = (low.square() + low * high + high.square()) / 3
    return torch.where(distribution.counts > 0, mean_square * distribution.counts, 0.0).sum(1)
