"""The few values of a range in the memory of the host, with which numpy counts faster than tensor operations.

An operation on one element takes microseconds, whatever it computes, and an observer makes thirty of them for
every batch of every quantizer. The values are float64, as the formulas are: the bits are the same.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values: TypeAlias = float | NDArray[np.float64]
ValueRange: TypeAlias = tuple[Values, Values]


def is_on_host(x: Tensor) -> bool:
    """Whether a value of ``x`` can be read without waiting: no device, compiler or transform holds it."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.is_cpu
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def values(x: Tensor) -> Values:
    """What ``x``, which is on the host, holds: a float if that is one value, for which Python is fastest."""
    return x.item() if x.numel() == 1 else x.detach().numpy().astype(np.float64)
