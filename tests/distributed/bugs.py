"""Bugs to seed in every rank, each of which a check has to catch, and ranks to lose."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from quantcfg.stages import calib, job, meeting, qat, records, sharding, synchronize, training
from quantcfg.stages.ranks import Ranks

PLACES = {
    "rendezvous": (meeting.Meeting, "join"),
    "model": (job.Job, "build_model"),
    "evaluation": (calib, "_evaluate"),
    "calibration": (calib, "_observe"),
    "merge": (sharding.ObserverShards, "_bring_together"),
    "step": (training.Trainer, "_backward"),
    "exchange": (synchronize, "_exchange"),
    "validation": (qat, "_evaluate"),
    "checkpoint": (records, "save"),
    "final write": (records, "finish"),
}


def lose(rank: int) -> None:
    """Send one rank a signal where the environment says."""
    place, lost, number = os.environ["LOSE"].split(":")
    if rank == int(lost):
        setattr(*PLACES[place], lambda *_, **__: os.kill(os.getpid(), int(number)))


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
