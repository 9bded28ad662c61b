"""Fake quantize with an observed scale, and the table of all fake quantizes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.numeric.host import values
from quantcfg.numeric.lsq import LearnableFakeQuantize
from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.ops import fake_quantize
from quantcfg.numeric.pact import PACTFakeQuantize
from quantcfg.numeric.qparams import QParams, along, in_memory, is_symmetric


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
        self._is_inside = False  # whether all of the batch that was just observed lies on the grid
        self._adopt_known_range()

    def _fake_quantize(self, x: Tensor) -> Tensor:
        observer, zero_point = self.observer, self._affine_zero_point()
        inside, self._is_inside = self._is_inside, False
        return fake_quantize(
            x,
            along(in_memory(self.scale), x, observer.ch_axis),
            None if zero_point is None else along(in_memory(zero_point), x, observer.ch_axis),
            quant_min=observer.quant_min,
            quant_max=observer.quant_max,
            inside=inside,
            double_backward=self.double_backward,
        )

    def _observe(self, x: Tensor) -> None:
        observer = self.observer
        observer.forward(x)  # without the hooks of a call: who wants to look hooks the quantizer
        if self.quantizing:
            self._set_qparams(observer.qparams())
            if not self._is_ready:
                self.has_qparams.logical_or_(self._seen_first_batch())
            self._is_inside = not torch.compiler.is_compiling() and self._holds_newest()

    def _holds_newest(self) -> bool:
        observer = self.observer
        if observer.newest is None:
            return False
        scale, zero_point = values(self.scale), values(self.zero_point)
        low, high = (end / scale + zero_point for end in observer.newest)
        # Short of the half step that rounds onto the grid: these are float64, and the tensor is not.
        return bool(np.all((low > observer.quant_min - 0.49) & (high < observer.quant_max + 0.49)))

    def _qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point)

    def _set_qparams(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
        if not is_symmetric(self.qscheme):
            self.zero_point.copy_(qparams.zero_point)


__all__ = ["FAKE_QUANTIZES", "FakeQuantize", "FakeQuantizeBase"]

FAKE_QUANTIZES: dict[str, type[FakeQuantizeBase]] = {
    "fake_quant": FakeQuantize,
    "lsq": LearnableFakeQuantize,
    "pact": PACTFakeQuantize,
}
