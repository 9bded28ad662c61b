"""Sums of floats that do not depend on the order of the terms."""

from __future__ import annotations

import torch
from torch import Tensor

from quantcfg.numeric.exact import ExactModule

# Digits of base 2**32; the lowest counts units of 2**-128, the highest reaches beyond 2**288.
_NUM_DIGITS = 13
_BITS = 32
_LOWEST = -128


class ExactSum(ExactModule):
    """Sums float64 terms in fixed point, so that any order and grouping gives the same bits.

    Each term is cut to a multiple of 2**-128 and split into digits of base 2**32 with the sign of the term;
    the digits are added as int64, which is exact for the first 2**31 terms.

    Shapes:
        digits: int64 ``(num_channels, 13)``, lowest digit first.
    """

    digits: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("digits", torch.zeros(num_channels, _NUM_DIGITS, dtype=torch.int64))

    def add(self, terms: Tensor) -> None:
        """Add one float64 term per channel, ``(num_channels,)``; finite, and below 2**288."""
        self.digits.add_((terms[:, None] / self._weights()).trunc().fmod(2.0**_BITS).long())

    def value(self) -> Tensor:
        """The sums, float64 ``(num_channels,)``."""
        return (self.digits.double() * self._weights()).flip(1).cumsum(1)[:, -1]

    def _weights(self) -> Tensor:
        places = torch.arange(_NUM_DIGITS, device=self.digits.device, dtype=torch.float64)
        return torch.exp2(places * _BITS + _LOWEST)
