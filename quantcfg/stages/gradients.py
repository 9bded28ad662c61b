"""The gradients that a step is made of, and whether they may be used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from quantcfg.stages.sharded import is_sharded, whole


class Gradients:
    """The gradients of some parameters; of sharded ones every rank has to ask."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self._are_sharded = any(map(is_sharded, self._parameters))
        by_device = defaultdict(list)
        for parameter in self._parameters:
            by_device[parameter.device].append(parameter)
        self._on_devices = [
            (group, *torch.tensor([[0.0], [1.0]], dtype=torch.float32, device=device))
            for device, group in by_device.items()
        ]

    @classmethod
    def of(cls, optimizer: Optimizer) -> Gradients:
        """The gradients of what ``optimizer`` trains."""
        return cls(parameter for group in optimizer.param_groups for parameter in group["params"])

    def clear(self) -> None:
        """Forget all of them, as ``zero_grad`` of an optimizer does."""
        for parameter in self._parameters:
            parameter.grad = None

    def divide(self, divisor: float) -> None:
        """Divide all of them, in place."""
        torch._foreach_div_(_existing(self._parameters), divisor)

    def norm(self) -> Tensor:
        """The root of the sum of all squares."""
        return whole(nn.utils.get_total_norm(_existing(self._parameters)))

    def clip(self, limit: float, norm: Tensor) -> None:
        """Scale all of them, in place, so that their ``norm`` is ``limit`` where it is larger."""
        nn.utils.clip_grads_with_norm_(self._parameters, limit, norm)

    def are_finite(self) -> bool:
        """Whether no value is infinite or NaN.

        By the one kernel that loss scaling has for it, with a scale of 1: a norm takes several times as long,
        and overflows for gradients that are finite.
        """
        if self._are_sharded:
            return bool(self.norm().isfinite())
        for parameters, found, scale in self._on_devices:
            gradients = [g._values() if g.is_sparse else g for p in parameters if (g := p.grad) is not None]
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, scale)
            if found:
                found.zero_()
                return False
        return True


def _existing(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
