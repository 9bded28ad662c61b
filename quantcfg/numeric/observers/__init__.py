"""The observers by name."""

from __future__ import annotations

from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.observers.clip import ClipObserver
from quantcfg.numeric.observers.clip_std import ClipStdObserver
from quantcfg.numeric.observers.fixed_scale import FixedScaleObserver
from quantcfg.numeric.observers.min_max import MinMaxObserver

OBSERVERS: dict[str, type[Observer]] = {
    "min_max": MinMaxObserver,
    "fixed_scale": FixedScaleObserver,
    "clip": ClipObserver,
    "clip_std": ClipStdObserver,
}
