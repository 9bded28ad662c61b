"""Fake quantize with an observed scale, and the table of all fake quantizes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.numeric.host import ValueRange, range_of, set_values, values
from quantcfg.numeric.lsq import LearnableFakeQuantize
from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.ops import fake_quantize
from quantcfg.numeric.pact import PACTFakeQuantize
from quantcfg.numeric.qparams import QParams, along, choose_on_host, in_memory


class FakeQuantize(FakeQuantizeBase):
    """Quantizes with the scale of its observer; in training the scale of a step contains that step's batch.

    The gradient passes straight through where the value lies on the grid, and is 0 elsewhere.

    Shapes:
        scale: buffer, float32, ``(1,)`` per tensor, ``(num_channels,)`` per channel. Before anything was
        observed it is 1.0, which is never used.
    """

    scale: Tensor

    def __init__(self, observer: Observer) -> None:
        super().__init__(observer)
        self.register_buffer("scale", torch.ones_like(observer.min_val))
        self._adopt_known_range()

    def _fake_quantize(self, x: Tensor, *, inside: bool) -> Tensor:
        observer = self.observer
        zero_point = None
        if not observer.symmetric:
            zero_point = along(in_memory(self.zero_point.round()), x, observer.ch_axis)
        return fake_quantize(
            x,
            along(in_memory(self.scale), x, observer.ch_axis),
            zero_point,
            quant_min=observer.quant_min,
            quant_max=observer.quant_max,
            inside=inside,
        )

    def _observe(self, x: Tensor) -> bool:
        observer = self.observer
        batch = observer(x)
        if not self.quantizing:
            return False
        if batch is not None:
            inside = self._follow_on_host(observer, batch)
        else:
            self._set_qparams(observer.qparams())
            inside = False
        if not self._is_ready:
            self.has_qparams.logical_or_(self._seen_first_batch())
        return inside

    def _follow_on_host(self, observer: Observer, batch: ValueRange) -> bool:
        """Take the qparams of the range that ``batch`` was folded into; whether that lies on the grid."""
        quant_min, quant_max, stored = observer.quant_min, observer.quant_max, self.scale
        ends = range_of(observer.min_val, observer.max_val)
        scale, zero_point = choose_on_host(*ends, quant_min, quant_max, symmetric=observer.symmetric)
        set_values(stored, scale)
        if not observer.symmetric:
            set_values(self.zero_point, zero_point)
        scale = values(stored)
        # Short of the half step that rounds onto the grid: these are float64, and the tensor is not.
        least, most = quant_min - 0.49 - zero_point, quant_max + 0.49 - zero_point
        return _all(batch[1] / scale < most) and _all(batch[0] / scale > least)

    def _qparams(self) -> QParams:
        return QParams(self.scale, self._integer_zero_point())

    def _set_qparams(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
        if not self.observer.symmetric:
            self.zero_point.copy_(qparams.zero_point)


def _all(found: bool | NDArray[np.bool_]) -> bool:
    return found if isinstance(found, bool) else bool(found.all())


__all__ = ["FAKE_QUANTIZES", "FakeQuantize", "FakeQuantizeBase"]

FAKE_QUANTIZES: dict[str, type[FakeQuantizeBase]] = {
    "fake_quant": FakeQuantize,
    "lsq": LearnableFakeQuantize,
    "pact": PACTFakeQuantize,
}
