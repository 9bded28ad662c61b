"""What it takes to see all that happens to a model's tensors while it is recorded."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def memory_of(tensor: Tensor) -> int:
    """Which memory a tensor lies in; tensors that share memory have it in common, and no others that live.

    Not its address: that is 0 for everything on the meta device.
    """
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # sparse, or wrapped by torch.func: it shares with nobody
        return id(tensor)


def is_float(leaf: Any) -> bool:
    """Whether something is a dense tensor of floats: what ops are recorded for."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.layout is torch.strided


def hides_floats(leaf: Any) -> bool:
    """Whether a tensor is sparse, nested or complex: made of activations, maybe, but not recorded as one."""
    return isinstance(leaf, Tensor) and (leaf.layout is not torch.strided or leaf.is_complex())


def twins_of(tensor: Tensor, others: Iterable[Tensor | None]) -> Iterator[Tensor]:
    """Those of ``others`` that are the same elements of the same memory: ``as_subclass`` shows to nobody."""
    wanted = _place(tensor)
    return (other for other in others if other is not None and _place(other) == wanted)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return memory_of(tensor), tensor.shape, tensor.stride(), tensor.storage_offset()


def uncompiled() -> AbstractContextManager[Any]:
    """Runs what the model has compiled as it was written, so that its ops are seen."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        return nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


def tensors_in(result: Any) -> Iterator[Tensor]:
    """Every tensor in what a forward returned: nested containers, dataclasses and plain objects."""
    for leaf in pytree.tree_leaves(result):
        if isinstance(leaf, Tensor):
            yield leaf
        elif dataclasses.is_dataclass(leaf) or hasattr(leaf, "__dict__"):
            yield from (item for item in pytree.tree_leaves(dict(vars(leaf))) if isinstance(item, Tensor))
