"""The few values of a range in the memory of the host, with which numpy counts faster than tensor operations.

An operation on one element takes microseconds, whatever it computes, and an observer makes thirty of them for
every batch of every quantizer. The values are float64, as the formulas are: the bits are the same.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

Values: TypeAlias = float | NDArray[np.float64]
ValueRange: TypeAlias = tuple[Values, Values]


def is_on_host(*tensors: Tensor) -> bool:
    """Whether their values can be read without waiting: no device, compiler or transform holds them."""
    return not torch.compiler.is_compiling() and all(map(_is_plain, tensors))


def _is_plain(x: Tensor) -> bool:
    return type(x) is Tensor and x.is_cpu and not is_functorch_wrapped_tensor(x)


def values(x: Tensor) -> Values:
    """What ``x``, which is on the host, holds: a float if that is one value, for which Python is fastest."""
    return x.item() if x.numel() == 1 else x.detach().numpy().astype(np.float64)


def range_of(low: Tensor, high: Tensor) -> ValueRange:
    """The `values` of both ends."""
    if low.numel() == 1:
        return low.item(), high.item()
    return values(low), values(high)


def set_range(low: Tensor, high: Tensor, found: ValueRange) -> None:
    """Write into both ends, which are on the host, what `range_of` is to read there, rounded to float32."""
    set_values(low, found[0])
    set_values(high, found[1])


def set_values(x: Tensor, found: Values) -> None:
    """Write into ``x``, which is on the host, what `values` is to read there."""
    if isinstance(found, float):
        x.fill_(found)  # where one value is written, numpy takes twice as long to begin
    else:
        x.numpy()[:] = found


def is_finite(found: ValueRange) -> bool:
    """Whether no end of the range is NaN or inf."""
    low, high = found
    if isinstance(low, float) or isinstance(high, float):
        return math.isfinite(low) and math.isfinite(high)
    return math.isfinite(low.min()) and math.isfinite(high.max())
