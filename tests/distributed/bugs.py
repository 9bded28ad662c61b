"""Bugs to seed in every rank, each of which a check has to catch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantcfg.stages import sharding, synchronize
from quantcfg.stages.ranks import Ranks


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
