"""The moving average of the weights in training, and the model with it in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quantcfg.stages.sharded import is_sharded, local, reshard, sharded_like


class WeightAverage:
    """A moving average of what a model learns, ``average = decay * average + (1 - decay) * weights``.

    It holds every parameter, learned scales and clips among them, and the statistics of batch norms. Observed
    ranges are taken as they are: they are moving averages already. It starts at the weights of the model, of
    which each rank averages its part where they are sharded.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = model
        self._weights = _averaged(model)
        self._average = [weight.detach().clone() for weight in self._weights]
        self._are_sharded = any(map(is_sharded, self._weights))

    def update(self) -> None:
        """Move the average towards the weights, after an optimizer step."""
        average, weights = self._average, self._weights
        if self._are_sharded:
            average, weights = list(map(local, average)), list(map(local, weights))
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model has the average in the place of its weights."""
        weights = self.weights()
        self._put(self._average)
        try:
            yield
        finally:
            self._put(weights)

    def weights(self) -> list[Tensor]:
        """A copy of the weights that are trained, sharded as they are."""
        return [weight.detach().clone() for weight in self._weights]

    def load(self, weights: Sequence[Tensor]) -> None:
        """Go on where `weights` was called inside a run, whole; the model holds the average of then."""
        _copy(self._weights, self._average)
        self._put([sharded_like(own, one) for own, one in zip(self._weights, weights, strict=True)])

    def _put(self, weights: Sequence[Tensor]) -> None:
        reshard(self._model)  # else the next forward would go on with what is gathered already
        _copy(weights, self._weights)


def _averaged(model: nn.Module) -> list[Tensor]:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    statistics = [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
    return [*model.parameters(), *statistics]


@torch.no_grad()
def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for old, new in zip(target, source, strict=True):
        old.copy_(new)
