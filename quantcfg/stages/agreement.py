"""Whether all ranks still hold the same qparams and weights, bit by bit, and what of the rest is kept."""

from __future__ import annotations

import hashlib
from collections import Counter

import torch
from torch import Tensor, nn

from quantcfg.errors import RunError
from quantcfg.preparation.state import fake_quants
from quantcfg.stages.ranks import Ranks
from quantcfg.stages.sharded import is_sharded, whole


def require_agreement(model: nn.Module, ranks: Ranks, where: str) -> None:
    """Compare the qparams of all ranks, and the weights that each holds whole.

    Raises:
        RunError: they differ; the message names the rank that stands alone and the first quantizer.
    """
    if not ranks.are_many:
        return
    parts = _parts(model)
    own = torch.stack([_digest(tensors) for tensors in parts.values()])
    rows = [[tuple(digest) for digest in digests.tolist()] for digests in ranks.gather(own)]
    odd = {
        name: rank
        for name, found in zip(parts, zip(*rows, strict=True), strict=True)
        if (rank := _odd(found))
    }
    if odd:
        name, rank = next(iter(odd.items()))
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        with ranks.alike():
            raise RunError(
                f"rank {rank} has other {name}{more} than the other ranks {where}",
                hint="ranks differ by hardware or versions, or code of the model depends on the rank",
            )


def share_buffers(model: nn.Module, ranks: Ranks) -> list[str]:
    """Give buffers that differ by rank, because the forward changes them, the value of the first one.

    Those of quantizers are left out. Gives the names of the buffers that differed.
    """
    buffers = own_buffers(model)
    if not (ranks.are_many and buffers):
        return []
    everyone = ranks.gather(torch.stack([_digest([buffer]) for buffer in buffers.values()]))
    differ = (torch.stack(everyone) != everyone[0]).any(-1).any(0).tolist()
    names = [name for name, is_odd in zip(buffers, differ, strict=True) if is_odd]
    for name in names:
        buffers[name].copy_(ranks.spread_tensor(buffers[name], source=0))
    return names


def own_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of ``model`` by name, without those of its quantizers."""
    ours = {id(buffer) for module in fake_quants(model).values() for buffer in module.buffers()}
    return {name: buffer for name, buffer in model.named_buffers() if id(buffer) not in ours}


def _parts(model: nn.Module) -> dict[str, list[Tensor]]:
    """What is compared, by the words that name it; quantizers first."""
    quantizers = {
        f"qparams in '{name}'": [whole(tensor) for tensor in module.qparams()]
        for name, module in fake_quants(model).items()
        if module.observed
    }
    weights = {
        f"weights in '{name}'": [parameter.detach()]
        for name, parameter in model.named_parameters()
        if not is_sharded(parameter)
    }
    return quantizers | weights


def _digest(tensors: list[Tensor]) -> Tensor:
    """The first 8 bytes of SHA-256."""
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return torch.tensor(list(digest.digest()[:8]), dtype=torch.uint8)


def _odd(digests: tuple[tuple[int, ...], ...]) -> str:
    """The first rank that has not what most have; empty when all are equal. Of two, the second."""
    usual = Counter(digests).most_common(1)[0][0]
    return next((str(rank) for rank, digest in enumerate(digests) if digest != usual), "")
