"""Fake quantize with a learned clipping point (PACT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantcfg.numeric.fake_quantize_base import LearnedFakeQuantize
from quantcfg.numeric.observers.base import Observer
from quantcfg.numeric.observers.fixed_scale import FixedScaleObserver
from quantcfg.numeric.ops import pact_fake_quantize
from quantcfg.numeric.qparams import QParams, effective_alpha, is_symmetric, symmetric_range


class PACTFakeQuantize(LearnedFakeQuantize):
    """Learns the range [-alpha, alpha] of its symmetric grid by gradient descent.

    Alpha starts from the observed or loaded range; without calibration the first batch seen in training sets
    it, once. Its gradient comes from the values clipped on both sides. It is taken by magnitude, so the scale
    stays positive. With a ``fixed_scale`` observer nothing is learned.

    Args:
        observer: gives the starting range, and the grid; its qscheme is symmetric and its dtype signed.
        alpha: where to start when nothing is ever observed.

    Shapes:
        alpha: parameter, float32, ``(1,)`` per tensor, ``(num_channels,)`` per channel, in real units.

    Raises:
        ValueError: the qscheme is affine or the dtype unsigned, whose ends are not +-alpha; or ``alpha`` is
            not above 0.

    Reference:
        Choi et al. 2018, arXiv 1805.06085, section 3. The paper clips to [0, alpha], on an unsigned grid.
    """

    has_default = True

    def __init__(self, observer: Observer, *, alpha: float = 6.0) -> None:
        super().__init__(observer)
        if not is_symmetric(self.qscheme) or not self.dtype.signed:
            scheme = str(self.qscheme).removeprefix("torch.")
            raise ValueError(
                f"pact clips to [-alpha, alpha]: it needs a symmetric qscheme and a signed dtype "
                f"(got {scheme} and {self.dtype})"
            )
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be above 0 (got {alpha})")
        learns = not isinstance(observer, FixedScaleObserver)
        self.alpha = nn.Parameter(torch.full_like(observer.min_val, alpha), requires_grad=learns)
        self._adopt_known_range()

    def value_range(self) -> tuple[Tensor, Tensor]:
        """[-alpha, alpha]; before there is one, the observer's range."""
        if not self._ready():
            return super().value_range()
        bound = self._bound()
        return -bound, bound

    def _fake_quantize(self, x: Tensor, *, inside: bool) -> Tensor:  # noqa: ARG002
        return pact_fake_quantize(
            x,
            self.alpha,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
            ch_axis=self.ch_axis,
        )

    def _start_at(self, qparams: QParams, *, where: Tensor) -> None:
        self.alpha.copy_(self._alpha_of(qparams.scale).where(where, self.alpha))
        self.has_qparams.logical_or_(where)

    def _alpha_of(self, scale: Tensor) -> Tensor:
        return symmetric_range(scale, quant_min=self.quant_min, quant_max=self.quant_max)[1]

    def _bound(self) -> Tensor:
        return effective_alpha(self.alpha.detach(), quant_min=self.quant_min, quant_max=self.quant_max)

    def _qparams(self) -> QParams:
        return QParams(self._bound() / ((self.quant_max - self.quant_min) / 2), self._integer_zero_point())

    @torch.no_grad()
    def _set_qparams(self, qparams: QParams) -> None:
        self.alpha.copy_(self._alpha_of(qparams.scale))
