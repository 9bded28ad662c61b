"""State of a model that FSDP2 shards, whole: what a checkpoint holds, whatever the number of ranks.

Tensors and modules of FSDP2 are told by their methods: its import takes a second, which few runs need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only a part of the tensor."""
    return hasattr(tensor, "full_tensor")


def is_fsdp(module: nn.Module) -> bool:
    """Whether the parameters of this module are sharded."""
    return hasattr(module, "set_requires_gradient_sync")


def reshard(model: nn.Module) -> None:
    """Let go of the parts of other ranks, which a forward without backward leaves here."""
    for module in model.modules():
        if is_fsdp(module):
            module.reshard()  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this rank may hold a part; then every rank has to ask."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, in the same memory; all of it where it is not sharded."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part.detach()


def sharded_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, sharded as ``parameter`` is, if that is; then every rank has to ask."""
    if not (hasattr(parameter, "device_mesh") and hasattr(parameter, "placements")):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def whole_state(value: Any) -> Any:
    """The same nested state with every tensor whole; every rank has to ask."""
    if isinstance(value, Tensor):
        return whole(value)
    if isinstance(value, Mapping):
        return {key: whole_state(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_state(item) for item in value]
    return value


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a whole optimizer state into an optimizer of sharded or whole parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shared = {
        number: {name: _like(parameters[number], value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict(dict(state) | {"state": shared})


def _like(parameter: Tensor, value: Any) -> Any:
    """What is as large as its parameter is sharded like it."""
    is_alike = isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0
    return sharded_like(parameter, value) if is_alike else value
