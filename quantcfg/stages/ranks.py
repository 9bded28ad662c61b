"""The processes that torchrun started, and what they tell each other. A process alone is a rank too.

Everything between ranks is tensors on the CPU: nothing is pickled. A collective that fails is a
`LostRankError`, upon which `quantcfg.stages.meeting` finds out who is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from traceback import walk_tb
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn

from quantcfg.runs.tree import detached_copy
from quantcfg.stages.user_code import is_worker_death

T = TypeVar("T")
_LOOK = timedelta(seconds=0.5)  # between two looks at whether a signal has come


class LostRankError(Exception):
    """A collective failed: another rank ended, hangs or waits for something else."""


@dataclass(slots=True)
class Whereabouts:
    """What this rank is doing, for messages, and the newest error that every rank raised."""

    place: str = ""
    common: Exception | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):  # a signal comes to one rank
            self.common = error

    def is_common(self, error: BaseException | None) -> bool:
        """Whether every rank raises ``error``: it is the common one, or comes of it.

        User code may have swallowed the common one, and fail by another on one rank alone.
        """
        while error is not None and error is not self.common:
            error = error.__cause__ or error.__context__
        return error is not None


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among ``size`` of them. The first one alone writes files and prints.

    ``is_launched``: torchrun started it, and ends it when it does not stop by itself.
    """

    rank: int = 0
    size: int = 1
    is_launched: bool = False
    whereabouts: Whereabouts = field(default_factory=Whereabouts, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this one writes and prints."""
        return self.rank == 0

    @property
    def are_many(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def owns(self, index: int) -> bool:
        """Whether the batch of this number in the common order is this rank's."""
        return index % self.size == self.rank

    def ends_round(self, index: int) -> bool:
        """Whether every rank has had a batch of its own after this one."""
        return (index + 1) % self.size == 0

    def at(self, place: str) -> None:
        """Note what this rank is doing."""
        self.whereabouts.place = place

    def alike(self) -> AbstractContextManager[None]:
        """What the block raises, every rank raises: the first one says it."""
        return self.whereabouts

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every rank, in their order; shape and dtype are the same on all. Comes on the CPU."""
        if not self.are_many:
            return [tensor]
        mine = tensor.detach().cpu().contiguous()
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        _finish(dist.all_gather(everyone, mine, async_op=True))
        return everyone

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of every rank, in their order; each may have another length."""
        if not self.are_many:
            return [data]
        lengths = [int(length) for length in self.gather(torch.tensor([len(data)]))]
        padded = _tensor_of(data.ljust(max(1, *lengths), b"\0"))
        everyone = self.gather(padded)
        return [_bytes_of(one[:length]) for one, length in zip(everyone, lengths, strict=True)]

    def odd_one(self, data: bytes) -> int | None:
        """The first rank whose ``data`` differs from that of rank 0; None when all have the same.

        No bytes at all say that this rank has failed and is about to end, unless all have.

        Raises:
            LostRankError: another rank has failed.
        """
        digests = self.gather(_digest(data))
        failed = _digest(b"")
        if data and any(torch.equal(other, failed) for other in digests):
            raise LostRankError("another rank has nothing to compare")
        return next((rank for rank, other in enumerate(digests) if not torch.equal(other, digests[0])), None)

    def largest(self, values: Sequence[int]) -> list[int]:
        """The largest of each value over all ranks."""
        if not self.are_many:
            return list(values)
        tensor = torch.tensor(values)
        _finish(dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True))
        return [int(value) for value in tensor]

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` gives on the first rank, which alone calls it; something that JSON can say."""
        if not self.are_many:
            return make()
        sent = json.dumps(make()).encode() if self.is_first else b""
        result: T = json.loads(self.spread(sent))
        return result

    def spread(self, data: bytes, *, source: int = 0) -> bytes:
        """The ``data`` of the rank ``source``."""
        if not self.are_many:
            return data
        length = torch.tensor([len(data)])
        _finish(dist.broadcast(length, source, async_op=True))
        tensor = _tensor_of(data) if self.rank == source else torch.empty(int(length), dtype=torch.uint8)
        if tensor.numel():
            _finish(dist.broadcast(tensor, source, async_op=True))
        return _bytes_of(tensor)

    def spread_tensor(self, tensor: Tensor, *, source: int) -> Tensor:
        """The tensor of the rank ``source``; shape and dtype are the same on all. Comes on the CPU."""
        tensor = tensor.detach().cpu().contiguous()
        _finish(dist.broadcast(tensor, source, async_op=True))
        return tensor

    def spread_tensors(self, tensors: dict[str, Tensor], *, source: int = 0) -> dict[str, Tensor]:
        """The tensors of the rank ``source`` by name, on the CPU."""
        if not self.are_many:
            return tensors
        mine = self.rank == source
        return load(self.spread(save(_copies(tensors)) if mine else b"", source=source))

    def share_state(self, model: nn.Module) -> None:
        """Give ``model``, built alike everywhere, the parameters and buffers of the first rank."""
        if self.are_many:
            model.load_state_dict(self.spread_tensors(model.state_dict()))


ALONE = Ranks()


def _finish(work: Any) -> None:
    """Wait for a collective, and hear of signals meanwhile: Python does not while torch waits.

    Raises:
        LostRankError: it failed.
    """
    while not work.is_completed():
        with suppress(RuntimeError):  # not yet completed; what went wrong is raised again below
            work.wait(_LOOK)
    with lost_ranks():
        work.wait()


@contextmanager
def lost_ranks() -> Iterator[None]:
    """Turn what torch.distributed raises in the block into a `LostRankError`."""
    try:
        yield
    except RuntimeError as error:  # gloo has no error of its own
        if is_worker_death(error):
            raise
        raise LostRankError(str(error)) from error


def is_lost_rank(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, comes from a collective: one that DDP or FSDP called, too."""
    while error is not None:
        if isinstance(error, LostRankError | dist.DistError):
            return True
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS):
            return _is_of_torch(error)
        error = error.__cause__
    return False


_SIGNS = (
    "gloo",
    "NCCL",
    "ProcessGroup",
    "Connection closed by peer",
    "Connection reset by peer",
    "pair closure",
)
_CALLERS = tuple(
    str(Path(torch.__file__).parent / part) for part in ("autograd", "distributed", "nn/parallel")
)


def _is_of_torch(error: RuntimeError) -> bool:
    """Whether something that calls collectives raised it: user code may lose a connection of its own."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_code.co_filename.startswith(_CALLERS)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: detached_copy(tensor) for name, tensor in tensors.items()}


def _digest(data: bytes) -> Tensor:
    return torch.tensor(list(hashlib.sha256(data).digest()), dtype=torch.uint8)


def _tensor_of(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
