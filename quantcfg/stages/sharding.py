"""Calibration by several ranks: each observes its share of the batches, then the statistics become one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quantcfg.config.suggest import counted
from quantcfg.errors import RunError
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.numeric.observers.base import Observer
from quantcfg.preparation.state import fake_quants
from quantcfg.stages.ranks import Ranks

_NEVER = 1 << 62  # later than any batch
# The share of what an observer remembers of single batches that may be filled before statistics are merged:
# an op may run several times in a batch.
_SHARE = 4


@dataclass(slots=True)
class ObserverShards:
    """The observers of a model whose calibration batches are divided among ranks.

    Between two merges the first rank holds the statistics of all batches up to the last merge and of its own
    since then; the others hold those of their own since then. A quantizer that rests, as those of weights do
    after one look, is not merged: the rank that looked in the earliest batch gives its statistics to all.
    """

    model: nn.Module
    ranks: Ranks
    _quantizers: dict[str, FakeQuantizeBase] = field(init=False)
    _fresh: dict[str, list[dict[str, Tensor]]] = field(init=False)
    _rests_since: dict[str, int] = field(init=False)
    _since_merge: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._quantizers = fake_quants(self.model)
        self._rests_since = dict.fromkeys(self._quantizers, _NEVER)
        self._fresh = {}
        if self.ranks.are_many:
            self._fresh = {name: [_copy(o) for o in _observers(q)] for name, q in self._quantizers.items()}

    def go_on(self, resting: Sequence[str]) -> None:
        """Start from the statistics in the model, those of a stopped run, in which ``resting`` had ended."""
        if self.ranks.is_first:  # the others look again, as each rank does in the first batch that it has
            for name in resting:
                self._quantizers[name].observing = False
                self._rests_since[name] = -1
        self._keep_on_first(self._quantizers)

    def begin_batch(self, index: int) -> None:
        """Tell every observer the place of the next batch in the whole stream."""
        for quantizer in self._quantizers.values():
            for observer in _observers(quantizer):
                observer.batch_index = index

    def end_batch(self, index: int) -> None:
        """Note which quantizers rest since the batch of this number."""
        self._since_merge += 1
        for name, quantizer in self._quantizers.items():
            if not quantizer.observing and self._rests_since[name] == _NEVER:
                self._rests_since[name] = index

    @property
    def wants_merge(self) -> bool:
        """Whether an observer will soon forget single batches, which only a merge puts in their order."""
        most = min(
            (o.records.index.numel() for o in self._watching() if o.records is not None), default=_NEVER
        )
        return self._since_merge * _SHARE >= most

    def merge(self) -> None:
        """Bring everything together on the first rank, and let the others begin anew."""
        if not self.ranks.are_many:
            return
        self._bring_together()
        self._keep_on_first([name for name, since in self._rests_since.items() if since == _NEVER])
        self._since_merge = 0

    def finish(self) -> None:
        """Bring everything together on every rank."""
        if self.ranks.are_many:
            self._bring_together()

    def _watching(self) -> Iterator[Observer]:
        for quantizer in self._quantizers.values():
            if quantizer.observing:
                yield from _observers(quantizer)

    def _bring_together(self) -> None:
        since = self.ranks.gather(torch.tensor([self._rests_since[name] for name in self._quantizers]))
        for place, (name, quantizer) in enumerate(self._quantizers.items()):
            firsts = [int(one[place]) for one in since]
            if min(firsts) == _NEVER:
                self._merge(quantizer)
            else:
                self._take(name, quantizer, firsts)

    def _merge(self, quantizer: FakeQuantizeBase) -> None:
        for observer in _observers(quantizer):
            states = self.ranks.gather(_packed(observer))
            everyone = [_restored(observer, state) for state in states]
            everyone[0].merge(*everyone[1:])
            observer.load_state_dict(everyone[0].state_dict())

    def _take(self, name: str, quantizer: FakeQuantizeBase, firsts: list[int]) -> None:
        owner = firsts.index(min(firsts))
        if owner or _NEVER in firsts:
            for observer in _observers(quantizer):
                packed = self.ranks.spread_tensor(_packed(observer), source=owner)
                observer.load_state_dict(_restored(observer, packed).state_dict())
        quantizer.observing = False
        self._rests_since[name] = min(firsts)

    def _keep_on_first(self, names: Sequence[str] | dict[str, FakeQuantizeBase]) -> None:
        if self.ranks.is_first:
            return
        for name in names:
            for observer, fresh in zip(_observers(self._quantizers[name]), self._fresh[name], strict=True):
                observer.load_state_dict(fresh)


class Pulse(NamedTuple):
    """What a rank says after each round of batches: how many it read, which, and what it wants.

    ``data`` is `DataSource.digest`.
    """

    batches: int
    is_end: bool = False
    data: int = 0
    stop: int = 0
    save: bool = False
    merge: bool = False

    def beat(self, ranks: Ranks, source: str) -> Pulse:
        """What all ranks want together: the largest of each. ``source`` is the data function that they read.

        Raises:
            RunError: they are not at the same place: their data differs, in length or in itself.
        """
        if not ranks.are_many:
            return self
        everyone = [one.tolist() for one in ranks.gather(torch.tensor([int(value) for value in self]))]
        with ranks.alike():
            _require_same_place(everyone, source)
        batches, is_end, data, stop, save, merge = map(max, zip(*everyone, strict=True))
        return Pulse(batches, bool(is_end), data, stop, bool(save), bool(merge))


def _require_same_place(everyone: list[list[int]], source: str) -> None:
    (read, is_end, data, *_), *others = everyone
    for rank, (count, ends, other, *_) in enumerate(others, start=1):
        had = counted(count, "batch", "batches")
        if count != read:
            fault = f"rank {rank} has read {had} of {source}() where rank 0 has read {read}"
        elif ends != is_end:
            short, long = (rank, 0) if ends else (0, rank)
            fault = f"{source}() has ended after {had} on rank {short} and goes on on rank {long}"
        elif other != data:
            fault = f"rank {rank} was given other batches of {source}() than rank 0, noticed at batch {read}"
        else:
            continue
        raise RunError(fault, hint="every rank has to be given the same batches; they are shared out here")


def _observers(quantizer: FakeQuantizeBase) -> list[Observer]:
    return [module for module in quantizer.modules() if isinstance(module, Observer)]


def _copy(observer: Observer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in observer.state_dict().items()}


def _packed(observer: Observer) -> Tensor:
    """The state of an observer as bytes; their number is that of any observer of these parameters."""
    parts = [
        tensor.cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in observer.state_dict().values()
    ]
    return torch.cat(parts)


def _restored(like: Observer, packed: Tensor) -> Observer:
    """The observer whose state was packed; ``like`` has its parameters."""
    observer, state, start = copy.deepcopy(like), {}, 0
    for name, tensor in like.state_dict().items():
        end = start + tensor.numel() * tensor.element_size()
        state[name] = packed[start:end].clone().view(tensor.dtype).view(tensor.shape)
        start = end
    observer.load_state_dict(state)
    return observer
