"""The moving average of the weights in training, and the model with it in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """A moving average of what a model learns, ``average = decay * average + (1 - decay) * weights``.

    It holds every parameter, learned scales and clips among them, and the statistics of batch norms. Observed
    ranges are taken as they are: they are moving averages already. It starts at the weights of the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = _averaged(model)
        self._average = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights, after an optimizer step."""
        torch._foreach_lerp_(self._average, self._weights, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model has the average in the place of its weights."""
        weights = self.weights()
        _copy(self._average, self._weights)
        try:
            yield
        finally:
            _copy(weights, self._weights)

    def weights(self) -> list[Tensor]:
        """A copy of the weights that are trained."""
        return [weight.detach().clone() for weight in self._weights]

    def load(self, weights: Sequence[Tensor]) -> None:
        """Go on where `weights` was called inside a run; the model holds the average of then."""
        _copy(self._weights, self._average)
        _copy(weights, self._weights)


def _averaged(model: nn.Module) -> list[Tensor]:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    statistics = [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
    return [*model.parameters(), *statistics]


@torch.no_grad()
def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for old, new in zip(target, source, strict=True):
        old.copy_(new)
