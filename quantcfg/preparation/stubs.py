"""Marks that a user may put into a model: where quantization begins and where it ends."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class QuantStub(nn.Module):
    """The tensor that passes here is quantized. In a model that has one, nothing before it is.

    Before preparation it hands its input on.
    """

    op: ClassVar[str] = "quant_stub"

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x.view_as(x)


class DeQuantStub(nn.Module):
    """The end of the quantized region: what follows is left in float. It may be shared."""

    op: ClassVar[str] = "dequant_stub"

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x.view_as(x)
