"""New ranges from the statistics of an earlier calibration, without its data."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from quantcfg.errors import RunError
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.observers.fixed_scale import FixedScaleObserver
from quantcfg.numeric.observers.histogram_family import HistogramObserver
from quantcfg.preparation.state import fake_quants

_SHOWN = 8


def recalculate(model: nn.Module, calibrated: nn.Module) -> None:
    """Give every quantizer of ``model`` its qparams from the statistics in ``calibrated``.

    The same kind with the same parameters takes the same range, on whatever grid. Between two kinds of the
    histogram family the new kind solves the counts of the old one: for the bits of a calibration with data
    where the stream is short or both count in the same bins, else as finely as the old one counted.

    Raises:
        RunError: a quantizer has no statistics that its observer could use; the message says which and why.
    """
    old, new = fake_quants(calibrated), fake_quants(model)
    if missing := [name for name in new if name not in old]:
        raise RunError(
            f"{len(missing)} of {len(new)} quantizers were not calibrated: {', '.join(missing[:_SHOWN])}",
            hint="calibrate with data",
        )
    for name, fake_quant in new.items():
        _take(fake_quant, old[name])


def _take(new: FakeQuantizeBase, old: FakeQuantizeBase) -> None:
    if reason := next(_objections(new.observer, old.observer), None):
        raise RunError(f"{new.name}: {reason}", hint="calibrate with data")
    if isinstance(new.observer, HistogramObserver) and isinstance(old.observer, HistogramObserver):
        new.observer.solve_from(old.observer)
    elif not isinstance(new.observer, FixedScaleObserver):
        new.observer.load_range(old.observer.min_val, old.observer.max_val)
    new.observer.num_batches.copy_(old.observer.num_batches)
    new.observer.skipped.copy_(old.observer.skipped)
    new.finish_observation()


def _objections(new: Observer, old: Observer) -> Iterator[str]:
    """Why the statistics of ``old`` do not tell the range of ``new``."""
    if isinstance(new, FixedScaleObserver):
        return
    if (new.ch_axis, new.num_channels) != (old.ch_axis, old.num_channels):
        yield "the statistics are those of other channels"
    if isinstance(new, HistogramObserver) and isinstance(old, HistogramObserver):
        if old.histogram is None or new.histogram is None:
            yield "ranges of single batches were averaged, which keeps no histogram"
    elif type(new) is not type(old):
        yield f"statistics of {type(old).__name__} do not tell the range of {type(new).__name__}"
    elif _parameters(new) != _parameters(old):
        yield f"its observer has other parameters: {new!r} instead of {old!r}"


def _parameters(observer: Observer) -> tuple[object, ...]:
    """What the range of a kind outside the histogram family depends on; the grid is not part of it."""
    return observer.averaging_constant, *(getattr(observer, name) for name in observer.own_parameters)
