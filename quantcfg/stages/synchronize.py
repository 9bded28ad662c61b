"""What quantizers and batch norms learn from the batches of one step, the same on every rank.

Every batch of a step starts from the statistics before the step, whichever rank has it. After the last one
the ranks exchange what each batch added, and all of them take it in again, in the order of the batches. So
the statistics depend on the batches of a step and not on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.preparation.fold import normalizes
from quantcfg.preparation.state import fake_quants
from quantcfg.stages.ranks import Ranks
from quantcfg.stages.steps import Turn

_CALIBRATION_ONLY = ("records.", "histogram.")


@dataclass(slots=True)
class Added:
    """What one batch added: its loss and, one after the other, the entries of quantizers and batch norms.

    Shapes:
        calls: int64 ``(Q,)``, how often each quantizer observed.
        values: float64; for each quantizer two counts and its entries, for each batch norm the count and two
            vectors of `_NormStatistics`.
    """

    index: int
    loss: float
    calls: Tensor
    values: Tensor


class OneBatch:
    """What a step of one batch in one process has instead of `StepStatistics`: its loss, and no exchange."""

    def losses(self, turns: Iterable[Turn], backward: Callable[[Turn], float]) -> list[float]:
        """The loss of the batch, from which ``backward`` goes backward."""
        return list(map(backward, turns))


@dataclass(slots=True)
class StepStatistics:
    """The statistics of a model in training, in a step of several batches or ranks."""

    model: nn.Module
    ranks: Ranks
    _quantizers: list[FakeQuantizeBase] = field(default_factory=list, init=False)
    _norms: list[_NormStatistics] = field(default_factory=list, init=False)
    _state: list[Tensor] = field(default_factory=list, init=False)
    _before: list[Tensor] = field(default_factory=list, init=False)
    _added: list[Added] = field(default_factory=list, init=False)

    def losses(self, turns: Iterable[Turn], backward: Callable[[Turn], float]) -> list[float]:
        """Go ``backward`` from the batches of a step, and take in those of all ranks; the loss of each."""
        self._begin()
        for turn in turns:
            with self._batch():
                loss = backward(turn)
                if turn.counts:
                    self._added.append(Added(turn.index, loss, *self._taken()))
        return self._finish()

    def _begin(self) -> None:
        """Note the statistics before a step."""
        self._added = []
        self._quantizers = [module for module in fake_quants(self.model).values() if module.observing]
        self._norms = [_NormStatistics(m) for m in self.model.modules() if _has_live_statistics(m)]
        self._state = [t for q in self._quantizers for t in _folded(q)]
        self._state += [t for norm in self._norms for t in norm.state]
        self._before = [tensor.clone() for tensor in self._state]

    @contextmanager
    def _batch(self) -> Iterator[None]:
        """Around one batch: it starts from the statistics before the step, and leaves them as they were."""
        for quantizer in self._quantizers:
            quantizer.observer.taken = []
        try:
            yield
        finally:
            for quantizer in self._quantizers:
                quantizer.observer.taken = None
            self._restore()

    def _finish(self) -> list[float]:
        """Take in the batches of all ranks; their losses, in the order of the batches."""
        everything = sorted(_exchange(self._added, self.ranks), key=lambda added: added.index)
        self._replay(everything)
        return [added.loss for added in everything]

    def _restore(self) -> None:
        if self._state:
            torch._foreach_copy_(self._state, self._before)

    def _taken(self) -> tuple[Tensor, Tensor]:
        before, parts, calls = iter(self._before), [], []
        for quantizer in self._quantizers:
            observer, start = quantizer.observer, {name: next(before) for name in _names(quantizer)}
            taken = observer.taken or []
            parts += [
                observer.num_batches - start["num_batches"],
                observer.skipped - start["skipped"],
                *taken,
            ]
            calls.append(len(taken))
        for norm in self._norms:
            parts += norm.added([next(before) for _ in norm.state])
        values = torch.cat([part.double().reshape(-1) for part in parts]) if parts else _NOTHING[1]
        return torch.tensor(calls, dtype=torch.int64), values

    @torch.no_grad()
    def _replay(self, everything: Sequence[Added]) -> None:
        called = torch.zeros(len(self._quantizers), dtype=torch.int64)
        for added in everything:
            self._take(added)
            called += added.calls
        for quantizer, calls in zip(self._quantizers, called.tolist(), strict=True):
            if calls and quantizer.quantizing:
                quantizer.follow_observer()

    def _take(self, added: Added) -> None:
        values = _Reader(added.values.to(self._state[0].device) if self._state else added.values)
        for quantizer, calls in zip(self._quantizers, added.calls.tolist(), strict=True):
            observer = quantizer.observer
            observer.num_batches += values.take(1).long()
            observer.skipped += values.take(1).long()
            for _ in range(calls):
                observer.replay(values.take(observer.taken_size))
        for norm in self._norms:
            norm.take(values)


@dataclass(slots=True)
class _Reader:
    values: Tensor
    at: int = 0

    def take(self, count: int) -> Tensor:
        self.at += count
        return self.values[self.at - count : self.at]


@dataclass(frozen=True, slots=True)
class _NormStatistics:
    """The running mean and variance of a batch norm that trains.

    With k calls in a batch they become ``keep**k * running + added``, keep being 1 - momentum; without a
    momentum they are the mean of all calls, and what is added is the sum.
    """

    module: Any  # a torch batch norm, whose buffers mypy cannot see

    @property
    def state(self) -> list[Tensor]:
        return [self.module.num_batches_tracked, self.module.running_mean, self.module.running_var]

    def added(self, before: Sequence[Tensor]) -> list[Tensor]:
        count, calls = self.state[0].double(), (self.state[0] - before[0]).double()
        parts = [calls]
        for now, then in zip(self.state[1:], before[1:], strict=True):
            parts.append(now.double() * self._weight(count) - then.double() * self._kept(calls, before[0]))
        return parts

    def take(self, values: _Reader) -> None:
        calls = values.take(1)[0]
        count = self.state[0] + calls
        for running in self.state[1:]:
            old = running.double() * self._kept(calls, self.state[0])
            running.copy_((old + values.take(running.numel())) / self._weight(count))
        self.state[0].copy_(count)

    def _kept(self, calls: Tensor, count: Tensor) -> Tensor:
        momentum = self.module.momentum
        return count.double() if momentum is None else (1 - momentum) ** calls

    def _weight(self, count: Tensor) -> Tensor:
        return (
            count.double().clamp(min=1) if self.module.momentum is None else torch.ones_like(count.double())
        )


_NOTHING = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64))


def _exchange(added: Sequence[Added], ranks: Ranks) -> list[Added]:
    """What the batches of all ranks added."""
    if not ranks.are_many:
        return list(added)
    everyone = ranks.gather_bytes(save({key: value for one in added for key, value in _named(one)}))
    return [one for data in everyone for one in _parsed(load(data))]


def _named(added: Added) -> Iterator[tuple[str, Tensor]]:
    yield f"{added.index}.loss", torch.tensor([added.loss], dtype=torch.float64)
    yield f"{added.index}.calls", added.calls
    yield f"{added.index}.values", added.values.cpu()


def _parsed(tensors: dict[str, Tensor]) -> Iterator[Added]:
    for index in {int(key.partition(".")[0]) for key in tensors}:
        loss, calls, values = (tensors[f"{index}.{name}"] for name in ("loss", "calls", "values"))
        yield Added(index, float(loss), calls, values)


def _folded(quantizer: FakeQuantizeBase) -> list[Tensor]:
    buffers = dict(quantizer.observer.named_buffers())
    return [buffers[name] for name in _names(quantizer)]


def _names(quantizer: FakeQuantizeBase) -> list[str]:
    """The buffers of an observer that training changes; what it keeps for calibration alone is left out."""
    names = [name for name, _ in quantizer.observer.named_buffers()]
    return [name for name in names if not name.startswith(_CALIBRATION_ONLY)]


def _has_live_statistics(module: nn.Module) -> bool:
    return module.training and normalizes(module)
