"""Fake quantize with a learned scale (LSQ)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantcfg.numeric.fake_quantize_base import LearnedFakeQuantize
from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.observers.fixed_scale import FixedScaleObserver
from quantcfg.numeric.ops import lsq_fake_quantize
from quantcfg.numeric.qparams import QParams, effective_scale, is_symmetric, symmetric_range


class LearnableFakeQuantize(LearnedFakeQuantize):
    """Learns its scale by gradient descent, from the observed or loaded one.

    The scale that quantizes is ``max(|scale|, eps)``: positive whatever an optimizer does. Without a
    calibration the first batch seen in training sets it, once; the observer is not run after that. The zero
    point of an affine qscheme is that of the starting range and is not learned. With a ``fixed_scale``
    observer nothing is learned.

    Args:
        observer: gives the starting scale, and grid and scheme.
        use_grad_scaling: multiply the scale's gradient by 1 / sqrt(n * quant_max), n the elements per scale.

    Shapes:
        scale: parameter, float32, ``(1,)`` per tensor, ``(num_channels,)`` per channel. Before anything was
        observed it is 1.0, which is never used.

    Reference:
        Esser et al. 2019, arXiv 1902.08153. The paper starts from 2 * mean|x| / sqrt(quant_max) instead.
    """

    def __init__(self, observer: Observer, *, use_grad_scaling: bool = False) -> None:
        super().__init__(observer)
        self.use_grad_scaling = use_grad_scaling
        self.scale = nn.Parameter(
            torch.ones_like(observer.min_val), requires_grad=not isinstance(observer, FixedScaleObserver)
        )
        self._adopt_known_range()

    def value_range(self) -> tuple[Tensor, Tensor]:
        """The range that the learned scale covers; before there is one, the observer's."""
        if not self._ready():
            return super().value_range()
        scale, zero_point = self._qparams()
        if is_symmetric(self.qscheme):
            return symmetric_range(scale, quant_min=self.quant_min, quant_max=self.quant_max)
        return (self.quant_min - zero_point) * scale, (self.quant_max - zero_point) * scale

    def _fake_quantize(self, x: Tensor, *, inside: bool) -> Tensor:  # noqa: ARG002
        return lsq_fake_quantize(
            x,
            self.scale,
            None if self.observer.symmetric else self.zero_point.round(),
            quant_min=self.quant_min,
            quant_max=self.quant_max,
            grad_scaling=self.use_grad_scaling,
            ch_axis=self.ch_axis,
        )

    def _start_at(self, qparams: QParams, *, where: Tensor) -> None:
        self.scale.copy_(qparams.scale.where(where, self.scale))
        self.zero_point.copy_(qparams.zero_point.where(where, self.zero_point))
        self.has_qparams.logical_or_(where)

    def _qparams(self) -> QParams:
        return QParams(effective_scale(self.scale.detach()), self._integer_zero_point())

    @torch.no_grad()
    def _set_qparams(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
        self.zero_point.copy_(qparams.zero_point)
