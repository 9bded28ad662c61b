"""How far two models are from each other on the same batches, and how far they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantcfg.errors import RunError
from quantcfg.stages.batches import tensors_in

SHARE_OF_ERROR = 0.5
"""Of a runtime that computes what the file says."""

SHARE_OF_ERROR_OPTIMISED = 1.0
"""Of one that rounds more than the file says, such as biases to int32."""

SHARE_OF_SIGNAL = 0.01


@dataclass(frozen=True, slots=True)
class Difference:
    """What was summed over all outputs that were compared: real units, float64.

    ``max_abs`` is over floating-point outputs, ``num_changed`` counts outputs of other kinds that differ.
    """

    max_abs: float = 0.0
    sum_squares: float = 0.0
    signal_squares: float = 0.0
    num_equal: int = 0
    num_values: int = 0
    num_changed: int = 0
    num_others: int = 0

    def __add__(self, other: Difference) -> Difference:
        sums = {name: getattr(self, name) + getattr(other, name) for name in self.__slots__}
        return Difference(**{**sums, "max_abs": max(self.max_abs, other.max_abs)})

    @property
    def rms(self) -> float:
        """The root of the mean squared difference."""
        return math.sqrt(self.sum_squares / max(self.num_values, 1))

    @property
    def signal_rms(self) -> float:
        """The root of the mean square of the outputs that the difference is from."""
        return math.sqrt(self.signal_squares / max(self.num_values, 1))

    @property
    def equal_share(self) -> float:
        """Bit-equal values over all."""
        total = self.num_values + self.num_others
        return (self.num_equal + self.num_others - self.num_changed) / max(total, 1)


def difference(outputs: Any, reference: Any) -> Difference:
    """``outputs`` from ``reference``: whatever a model returns, of the same structure.

    Raises:
        RunError: number or shapes of the tensors in it differ.
    """
    ours, theirs = list(tensors_in(outputs)), list(tensors_in(reference))
    if [x.shape for x in ours] != [x.shape for x in theirs]:
        raise RunError("the exported file returns tensors of other shapes than the model")
    return sum((_of_tensors(x, y) for x, y in zip(ours, theirs, strict=True)), Difference())


def bound(quantization_error: Difference, share: float) -> float:
    """The root mean squared difference that is allowed between the exported file and the fake-quant model.

    ``share`` of the error that quantization itself makes, or one hundredth of the outputs, whichever is more:
    a sum in another order moves a value across a rounding boundary now and then, which costs one step there.
    """
    return max(share * quantization_error.rms, SHARE_OF_SIGNAL * quantization_error.signal_rms)


def holds(found: Difference, allowed: float) -> bool:
    """Whether ``found`` is within the bound, and no more than one in a hundred integer outputs changed."""
    changed = found.num_changed / max(found.num_others, 1)
    return found.rms <= allowed and changed <= SHARE_OF_SIGNAL


def _of_tensors(x: Tensor, y: Tensor) -> Difference:
    if not y.is_floating_point():
        return Difference(num_changed=int((x != y).sum()), num_others=y.numel())
    x, y = x.detach().cpu(), y.detach().cpu()
    equal = (x == y) | (x.isnan() & y.isnan())
    delta = torch.where(equal, 0.0, x.double() - y.double())  # inf - inf, where both are
    finite = torch.where(y.isfinite(), y, 0.0).double()
    return Difference(
        max_abs=float(delta.abs().max()) if delta.numel() else 0.0,
        sum_squares=float(delta.square().sum()),
        signal_squares=float(finite.square().sum()),
        num_equal=int(equal.sum()),
        num_values=y.numel(),
    )
