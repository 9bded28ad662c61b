"""The noise of a range on what was counted, against the values themselves."""

import pytest
import torch

from quantcfg.numeric.noise import noise_of
from quantcfg.numeric.observers import OBSERVERS

CHANNELS = {"qscheme": "per_channel_affine", "ch_axis": 1, "num_channels": 3}


@pytest.mark.parametrize("shared", [{}, {"qscheme": "per_tensor_affine"}, CHANNELS])
@pytest.mark.parametrize(("size", "close"), [(60, 1e-5), (60_000, 0.02)])
@pytest.mark.parametrize("kind", ["min_max", "percentile", "kl"])
def test_noise_is_that_of_the_values(kind, size, close, shared):
    torch.manual_seed(0)
    stream = [torch.randn(size, 3) ** 3 + 0.3 for _ in range(3)]
    observer, counted = OBSERVERS[kind](dtype="qint5", **shared), OBSERVERS["mse"](dtype="qint5", **shared)
    for batch in stream:
        observer(batch)
        counted(batch)
    scale, zero_point = (part.reshape(1, -1) for part in observer.qparams())
    values = torch.cat(stream)
    rounded = ((values / scale).round() + zero_point).clamp(observer.quant_min, observer.quant_max)
    error = ((rounded - zero_point) * scale - values).double().square().sum()
    expected = float(error / values.double().square().sum())
    assert noise_of(observer, counted) == pytest.approx(expected, rel=close)


def test_zeros_have_no_noise():
    counted = OBSERVERS["mse"]()
    counted(torch.zeros(4))
    assert noise_of(counted, counted) == 0.0


def test_an_average_of_batches_cannot_tell():
    counted = OBSERVERS["mse"](averaging_constant=0.5)
    counted(torch.ones(4))
    with pytest.raises(ValueError, match="keeps no histogram"):
        noise_of(counted, counted)
