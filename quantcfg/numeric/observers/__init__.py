"""The observers by name."""

from __future__ import annotations

from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.observers.clip import ClipObserver
from quantcfg.numeric.observers.clip_std import ClipStdObserver
from quantcfg.numeric.observers.fixed_scale import FixedScaleObserver
from quantcfg.numeric.observers.kl import KLObserver
from quantcfg.numeric.observers.min_max import MinMaxObserver
from quantcfg.numeric.observers.mix import MixObserver
from quantcfg.numeric.observers.mse import MSEObserver
from quantcfg.numeric.observers.percentile import PercentileObserver

OBSERVERS: dict[str, type[Observer]] = {
    "min_max": MinMaxObserver,
    "fixed_scale": FixedScaleObserver,
    "clip": ClipObserver,
    "percentile": PercentileObserver,
    "clip_std": ClipStdObserver,
    "mse": MSEObserver,
    "kl": KLObserver,
    "mix": MixObserver,
}
