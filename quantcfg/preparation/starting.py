"""Learned quantizers that are to start from the first batch of training, where that cannot work."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.distributed as dist
from torch import nn

from quantcfg.config.suggest import counted
from quantcfg.errors import PrepareError, warn
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase, LearnedFakeQuantize

_HINT = "calibrate before it is sharded, or load a calibrated state then"


def check_starts(
    module: nn.Module, quantizers: Mapping[str, FakeQuantizeBase], of_weights: Callable[[], set[nn.Module]]
) -> bool:
    """Look at the learned ones of ``quantizers`` when training begins; whether it has, and nothing is left.

    Each rank has another first batch, but the same weights. DDP compares parameters when it is made, not
    later.

    Raises:
        PrepareError: FSDP2 has parted the parameters of ``module``: what a forward writes to them is lost.
    """
    watching = next((quantizer for quantizer in quantizers.values() if quantizer.observing), None)
    if watching is None or not watching.quantizing:
        return False
    new = [q for q in quantizers.values() if isinstance(q, LearnedFakeQuantize) and not q.observed]
    if new and any(hasattr(part, "set_requires_gradient_sync") for part in module.modules()):
        raise PrepareError(
            f"{counted(len(new), 'learned quantizer')} cannot start from the first batch under FSDP2, which "
            "drops what a forward writes to parameters",
            hint=_HINT,
        )
    if not (new and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return True
    apart = set(new) - of_weights()
    if apart:
        warn(
            f"{counted(len(apart), 'learned quantizer')} start from the first batch, which is another one on "
            f"each of {dist.get_world_size()} ranks, and so are their parameters from then on; calibrate "
            "first, or load a calibrated state"
        )
    return True
