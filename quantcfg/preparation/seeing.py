"""What it takes to see all that happens to a model's tensors while it is recorded."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def memory_of(tensor: Tensor) -> int:
    """Where the elements of a tensor are kept; tensors that share memory have it in common."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a sparse tensor, or one that only pretends to have elements
        return id(tensor)


def uncompiled() -> AbstractContextManager[Any]:
    """Runs what the model has compiled as it was written, so that its ops are seen."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        return nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager
