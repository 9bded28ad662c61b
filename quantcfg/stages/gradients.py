"""Whether gradients may be used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quantcfg.stages.sharded import is_sharded, whole


def are_finite(gradients: Sequence[Tensor]) -> bool:
    """Whether no value of ``gradients`` is infinite or NaN; of sharded ones every rank has to ask.

    By the one kernel that loss scaling has for it, with a scale of 1: a norm takes several times as long, and
    overflows for gradients that are finite.
    """
    if any(type(gradient) is not Tensor and is_sharded(gradient) for gradient in gradients):
        return bool(whole(nn.utils.get_total_norm(gradients)).isfinite())
    by_device = defaultdict(list)
    for gradient in gradients:
        by_device[gradient.device].append(gradient._values() if gradient.is_sparse else gradient)
    return all(_are_finite_on(device, group) for device, group in by_device.items())


def _are_finite_on(device: torch.device, gradients: list[Tensor]) -> bool:
    found, scale = torch.tensor(((0.0,), (1.0,)), dtype=torch.float32, device=device)
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, scale)
    return not bool(found)
