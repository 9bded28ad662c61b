"""Bugs to seed in every rank, each of which a check has to catch, and ranks to lose or to hold up."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d

from quantcfg.stages import calib, job, meeting, pauses, records, sharding, synchronize, training
from quantcfg.stages.ranks import Ranks

SHORT_S = 5.0
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PLACES = {
    "rendezvous": (meeting.Meeting, "join"),
    "model": (job.Job, "build_model"),
    "evaluation": (calib, "_evaluate"),
    "calibration": (calib, "_observe"),
    "merge": (sharding.ObserverShards, "_bring_together"),
    "step": (training.Trainer, "_backward"),
    "exchange": (synchronize, "_exchange"),
    "validation": (pauses.Pauses, "_evaluate"),
    "checkpoint": (records, "save"),
    "final write": (records, "finish"),
}


def lose(rank: int) -> None:
    """Send one rank a signal where the environment says, when all of them are there.

    Only then they begin to wait for each other for no longer than ``SHORT_S``, which a busy machine may need
    before.
    """
    place, lost, number = os.environ["LOSE"].split(":")
    owner, name = PLACES[place]
    real, come, came = getattr(owner, name), meeting.Meeting.come, []
    meeting.Meeting.come = lambda self: came.append(self) or come(self)

    def at_place(*where: object, **named: object) -> object:
        setattr(owner, name, real)
        _come_together(*came)
        if rank == int(lost):
            os.kill(os.getpid(), int(number))
        return real(*where, **named)

    setattr(owner, name, at_place)


def _come_together(joined: meeting.Meeting) -> None:
    joined._post("there")
    joined.board.wait([f"there/{rank}" for rank in range(joined.ranks.size)])
    object.__setattr__(joined, "timeout", SHORT_S)
    if dist.is_initialized():
        distributed_c10d._set_pg_timeout(timedelta(seconds=SHORT_S), dist.group.WORLD)


def lose_while_others_start(rank: int) -> None:
    """Lose the first rank in the rendezvous when the second has come, and the last one never does."""
    if rank == 0:
        meeting.Meeting.join = lambda self, _: (
            self.board.wait(["came/1"]) or os.kill(os.getpid(), signal.SIGKILL)
        )
    if rank == 2:
        os.kill(os.getpid(), signal.SIGSTOP)


def never_come(rank: int) -> None:
    """Lose the last rank when the others wait for it."""
    if rank == 2:
        meeting.Meeting.come = lambda self: (
            self.board.wait(["came/0", "came/1"]) or os.kill(os.getpid(), signal.SIGKILL)
        )


def tell_of_writes(rank: int) -> None:
    """Let every rank print what it changes in its run directory."""

    def tell(event: str, arguments: tuple[object, ...]) -> None:
        is_change = event in _CHANGES or (event == "open" and bool(arguments[2] & _WRITING))
        if is_change and "/run/" in str(arguments[0]):
            os.write(2, f"changed {arguments[0]}\n".encode())

    sys.addaudithook(tell)


def late(rank: int) -> None:
    """Let the first rank come late to an error that all of them raise."""
    if rank == 0:
        alike = Ranks.alike
        Ranks.alike = lambda self: time.sleep(0.5) or alike(self)


@dataclass
class Deaf:
    ranks: Ranks

    def gather(self, tensor):
        first, _, *others = self.ranks.gather(tensor)
        return [first, *others]


def merge_without_rank_1(rank: int) -> None:
    merge = sharding.ObserverShards._merge

    def deaf(self, quantizer):
        ranks, self.ranks = self.ranks, Deaf(self.ranks)
        merge(self, quantizer)
        self.ranks = ranks

    sharding.ObserverShards._merge = deaf


def weights_observed_by_each(rank: int) -> None:
    sharding.ObserverShards._take = lambda self, name, quantizer, firsts: self._merge(quantizer)


def observers_of_one_rank(rank: int) -> None:
    exchange = synchronize._exchange

    def own(added, ranks):
        mine = {one.index for one in added}
        others = [one for one in exchange(added, ranks) if one.index not in mine]
        return [*added, *(replace(one, calls=one.calls * 0) for one in others)]

    synchronize._exchange = own
