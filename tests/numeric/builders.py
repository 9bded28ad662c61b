"""Fake quantizes for tests, built the way `prepare` builds them."""

from __future__ import annotations

from quantcfg.numeric.fake_quantize import FAKE_QUANTIZES, FakeQuantizeBase
from quantcfg.numeric.observers.min_max import MinMaxObserver

SCHEMES = ("per_tensor_symmetric", "per_tensor_affine", "per_channel_symmetric", "per_channel_affine")
KINDS = tuple(
    (kind, scheme) for kind in FAKE_QUANTIZES for scheme in SCHEMES if kind != "pact" or "symmetric" in scheme
)


def build(
    kind="fake_quant", qscheme="per_tensor_symmetric", *, channels=3, ch_axis=1, dtype="qint8", **options
):
    """A fake quantize over a min_max observer, in the float state."""
    shared = {"dtype": dtype, "qscheme": qscheme, **options.pop("observer", {})}
    if "per_channel" in qscheme:
        shared |= {"num_channels": channels, "ch_axis": ch_axis}
    return FAKE_QUANTIZES[kind](MinMaxObserver(**shared), **options)


def calibrated(x, kind="fake_quant", qscheme="per_tensor_symmetric", **options) -> FakeQuantizeBase:
    """One that has seen ``x`` and quantizes with fixed qparams."""
    channels = x.shape[options.get("ch_axis", 1)] if "per_channel" in qscheme else 1
    module = build(kind, qscheme, channels=channels, **options)
    module.observing = True
    module(x)
    module.finish_observation()
    module.observing, module.quantizing = False, True
    return module


def train(module: FakeQuantizeBase) -> FakeQuantizeBase:
    """Observe and quantize, as in training."""
    module.observer.fold_batches = True
    module.observing = module.quantizing = True
    return module
