"""The ranges of single batches, kept so that an average over processes can be folded in the true order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantcfg.numeric.exact import ExactModule
from quantcfg.numeric.host import ValueRange, values

Range = tuple[Tensor, Tensor]
Step = Callable[[Range, Range], Range]

# Values kept per bound; a per-tensor observer remembers 1,024 batches in 20 KB.
_BUDGET = 1 << 14
_MOST, _FEWEST = 1024, 16


def capacity(num_channels: int) -> int:
    """How many batches are remembered for that many channels."""
    return max(_FEWEST, min(_MOST, _BUDGET // num_channels))


class BatchRecords(ExactModule):
    """The newest batches of a stream, and the range that all earlier ones have been folded into (the base).

    Shapes, with R the capacity and C the channels:
        index: int64 ``(R,)``, the batch's place in the whole stream, -1 where there is none; oldest first.
        ranges: float32 ``(R, 2, C)``; base: float32 ``(2, C)``, +inf and -inf before there is one.
        base_end: int64 ``(1,)``, index of the last batch in the base, -1 for none.
    """

    index: Tensor
    ranges: Tensor
    base: Tensor
    base_end: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        size = capacity(num_channels)
        self.register_buffer("index", torch.full((size,), -1))
        self.register_buffer("ranges", torch.zeros(size, 2, num_channels, dtype=torch.float32))
        base = torch.full((2, num_channels), torch.inf, dtype=torch.float32)
        base[1].neg_()
        self.register_buffer("base", base)
        self.register_buffer("base_end", torch.full((1,), -1))
        self._waiting: list[tuple[int, ValueRange]] = []
        self._room = size  # for batches that wait

    def push(self, index: Tensor | int, batch: Range, finite: Tensor, step: Step) -> None:
        """Remember one more batch if it is ``finite``; without room the oldest moves into the base."""
        if self.index.is_cpu and not torch.compiler.is_compiling():
            if finite:  # asking costs nothing here, and most of the work falls away
                self.append(int(index), (values(batch[0]), values(batch[1])), step)
            return
        self.settle()
        leaves = finite & (self.index[0] >= 0)
        folded = torch.stack(step(self._base_range(), self._oldest()))
        self.base.copy_(torch.where(leaves, folded, self.base))
        self.base_end.copy_(torch.where(leaves, self.index[:1], self.base_end))
        newest = torch.as_tensor(index, device=self.index.device).reshape(1)
        self.index.copy_(torch.where(finite, torch.cat((self.index[1:], newest)), self.index))
        ranges = torch.cat((self.ranges[1:], torch.stack(batch)[None]))
        self.ranges.copy_(torch.where(finite, ranges, self.ranges))

    def append(self, index: int, batch: ValueRange, step: Step) -> None:
        """Remember one more batch, which is finite and in the host's memory; see `push`.

        It waits for `settle`: to move the rows takes longer than all else that an observer does with a batch.
        """
        if len(self._waiting) >= self._room:
            self._make_room(step)
        self._waiting.append((index, batch))

    def settle(self) -> None:
        """Put the batches that wait into their places; there is room for them."""
        if not self._waiting:
            return
        number, (index, ranges) = len(self._waiting), zip(*self._waiting, strict=True)
        newest = torch.tensor(index, device=self.index.device)
        self.index.copy_(torch.cat((self.index[number:], newest)))
        batches = torch.from_numpy(np.array(ranges, dtype=np.float32)).to(self.ranges.device)
        self.ranges.copy_(torch.cat((self.ranges[number:], batches.view(number, 2, -1))))
        self._waiting.clear()
        self._count_room()

    def _make_room(self, step: Step) -> None:
        """Fold the oldest quarter into the base, so that this happens once in a while."""
        self.settle()
        leaving = len(self.index) // 4
        for batch in self.ranges[:leaving]:
            self.base.copy_(torch.stack(step(self._base_range(), (batch[0], batch[1]))))
        self.base_end.copy_(self.index[leaving - 1])
        self.index[:leaving] = -1
        self._count_room()

    def _count_room(self) -> None:
        self._room = 0 if self.index.is_meta else int((self.index < 0).sum())

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.settle()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._waiting.clear()
        self._count_room()

    def _oldest(self) -> Range:
        return self.ranges[0, 0], self.ranges[0, 1]

    def restart(self, low: Tensor, high: Tensor) -> None:
        """Forget the batches and start from a known range."""
        self._waiting.clear()
        self._room = len(self.index)
        self.index.fill_(-1)
        self.ranges.zero_()
        self.base.copy_(torch.stack((low, high)))
        self.base_end.fill_(-1)

    def merge(self, others: Sequence[BatchRecords], step: Step) -> Range:
        """Take in the batches of other streams and fold them all, in the order of their index.

        Raises:
            ValueError: two streams saw batches of the same index, or one has already folded batches that
                would have to come after another's.
        """
        streams = (self, *others)
        for stream in streams:
            stream.settle()
        index = torch.cat([stream.index[stream.index >= 0] for stream in streams])
        ranges = torch.cat([stream.ranges[stream.index >= 0] for stream in streams])
        if not self._is_constant(streams, ranges):
            self._check_order(streams)
        start = max(streams, key=lambda stream: (int(stream.base_end), stream._has_base))
        order = torch.argsort(index, stable=True)
        self.restart(*start._base_range())
        self.base_end.copy_(start.base_end)
        return self._refold(index[order], ranges[order], step)

    @property
    def _has_base(self) -> bool:
        return bool((self.base[0] <= self.base[1]).all())

    def _base_range(self) -> Range:
        return self.base[0], self.base[1]

    def _has_before(self, last: int) -> bool:
        """Whether a batch that is remembered here belongs before the last one of some stream's base."""
        ends_there = int(self.base_end) == last  # the rest of that batch may be here
        return bool(((self.index >= 0) & (self.index < last + (not ends_there))).any())

    def _refold(self, index: Tensor, ranges: Tensor, step: Step) -> Range:
        state, yes = self._base_range(), torch.tensor(True, device=index.device)
        for one, batch in zip(index, ranges, strict=True):
            state = step(state, (batch[0], batch[1]))
            self.push(one, (batch[0], batch[1]), yes, step)
        return state[0].clone(), state[1].clone()

    @staticmethod
    def _is_constant(streams: Sequence[BatchRecords], ranges: Tensor) -> bool:
        """Whether every batch had one and the same range, as a weight has: then no order is needed."""
        bases = [stream.base[None] for stream in streams if stream._has_base]
        everything = torch.cat([ranges, *bases])
        return bool((everything == everything[:1]).all())

    @staticmethod
    def _check_order(streams: Sequence[BatchRecords]) -> None:
        seen = [set(stream.index[stream.index >= 0].tolist()) for stream in streams]
        if sum(map(len, seen)) != len(set().union(*seen)):  # one stream may see a batch several times
            raise ValueError("two of the merged observers saw a batch of the same index; set batch_index")
        bases = [stream for stream in streams if stream._has_base]
        last = max((int(stream.base_end) for stream in bases), default=-1)
        agree = all(torch.equal(stream.base, bases[0].base) for stream in bases)
        if not agree or any(stream._has_before(last) for stream in streams):
            raise ValueError(
                "batches to merge were folded away already; "
                f"at most {streams[0].index.numel()} are remembered"
            )
