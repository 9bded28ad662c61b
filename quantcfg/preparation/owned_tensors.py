"""The parameters and buffers of a model that is recorded: their names, and whether they stay as they are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from quantcfg.preparation.tensors import memory_of


@dataclass(frozen=True, slots=True)
class Owned:
    """One of them, with how often it was written into, and the memory it lies in, when recording began."""

    kind: str  # parameter or buffer
    name: str
    tensor: Tensor
    version: int
    memory: int

    def is_overwritten(self, written: Collection[int]) -> bool:
        """Whether it is another now, where ``written`` has the memory that recorded ops wrote into."""
        now = (_version_of(self.tensor), memory_of(self.tensor))
        return now != (self.version, self.memory) or self.memory in written


def owned_by(model: nn.Module) -> dict[int, Owned]:
    """By ``id``, what a model owns, named after the module that ran where one is registered twice."""
    return {
        id(tensor): Owned(kind, f"{path}.{name}".lstrip("."), tensor, _version_of(tensor), memory_of(tensor))
        for path, module in model.named_modules()
        for kind, held in (("parameter", module._parameters), ("buffer", module._buffers))
        for name, tensor in held.items()
        if tensor is not None
    }


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by every name that they have; a model may list others, or fewer, as its own."""
    return {
        f"{path}.{name}".lstrip("."): parameter
        for path, module in model.named_modules(remove_duplicate=False)
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def _version_of(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
