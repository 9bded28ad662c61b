"""Parameters that appear after an optimizer was made, which would never train them."""

from __future__ import annotations

import gc
from collections.abc import Set

import torch
from torch import nn

from quantcfg.config.suggest import counted, listing
from quantcfg.errors import PrepareError


def refuse_late_parameters(model: nn.Module, before: Set[int], *, hint: str) -> None:
    """Raise where a model has parameters beside those of the identities ``before``; ``hint`` is what to do.

    Raises:
        PrepareError: it does, and an optimizer that was made before would never train them.
    """
    new = [name for name, parameter in model.named_parameters() if id(parameter) not in before]
    if new:
        raise PrepareError(
            f"{counted(len(new), 'parameter')} of quantizers or folded batch norms appeared after an "
            f"optimizer was made, which would never train {'it' if len(new) == 1 else 'them'}: "
            f"{listing(new, 4)}",
            hint=hint,
        )


def held_by_optimizer(own: Set[int]) -> bool:
    """Whether an optimizer holds a parameter of these identities."""
    for candidate in gc.get_objects():
        if issubclass(type(candidate), torch.optim.Optimizer):  # isinstance would ask lazy proxies
            groups = getattr(candidate, "param_groups", ())
            if any(id(p) in own for group in groups for p in group["params"]):
                return True
    return False
