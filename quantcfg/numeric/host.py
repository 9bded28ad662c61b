"""Single values in the memory of the host, with which Python counts faster than tensor operations do.

An operation on one element takes microseconds, whatever it computes, and an observer makes thirty of them for
every batch of every quantizer. Python's floats are float64, as the formulas are: the bits are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_on_host(x: Tensor) -> bool:
    """Whether a value of ``x`` can be read without waiting: no device, compiler or transform holds it."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.is_cpu
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )
