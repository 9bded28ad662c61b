"""Large tensors a part at a time, so that what is written is read again while it is in the cache."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

PART_SIZE = 3 << 18  # elements: smaller parts spend more in calls, larger ones in temporaries out of cache


def parts(x: Tensor, *others: Tensor | None, temporaries: bool = True) -> Iterable[tuple[Any, ...]]:
    """``x`` and what goes with it, cut along the first axis that can be; what broadcasts over it stays whole.

    On a CPU a part stays in the cache, and the system need not map memory for whole temporaries. Without
    ``temporaries`` a part may be twice as large.
    """
    num_parts = x.numel() // (PART_SIZE if temporaries else 2 * PART_SIZE)
    if num_parts < 2 or not x.is_cpu or torch.compiler.is_compiling():
        return ((x, *others),)
    axis = next(axis for axis, size in enumerate(x.shape) if size > 1) - x.dim()
    num_rows = -(-x.shape[axis] // num_parts)
    return zip(*(_cut(tensor, x, axis, num_rows) for tensor in (x, *others)), strict=False)


def _cut(tensor: Tensor | None, x: Tensor, axis: int, num_rows: int) -> Iterable[Tensor | None]:
    if tensor is None or tensor.dim() < -axis or tensor.shape[axis] != x.shape[axis]:
        return repeat(tensor)
    return torch.split(tensor, num_rows, axis)
