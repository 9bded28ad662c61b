"""Which batches make an optimizer step, and which rank takes which of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from quantcfg.stages.data import DataSource, Numbered
from quantcfg.stages.ranks import Ranks
from quantcfg.stages.sharding import Pulse


@dataclass(slots=True)
class Turn:
    """One batch of one rank, while each other rank has one too.

    Attributes:
        index, batch: the batch and its number in the epoch.
        counts: False where there is none left for this rank: it takes another one's along and adds nothing,
            so that the ranks make the same calls.
        is_last: of its step: gradients are brought together.
    """

    index: int
    batch: Any
    counts: bool
    is_last: bool


def steps(source: DataSource, batches: Iterator[Numbered], size: int) -> Iterator[Iterable[Turn]]:
    """Divide the ``batches`` of a pass of ``source`` into steps of ``size``; the last one has what is left.

    Of a step's batches rank r takes number r, r + N, ... of N ranks. Each step is to be used up before the
    next. At most the batches of the next turn are read ahead, and none beyond a step.

    Raises:
        RunError: The ranks are not at the same batch: their data differs.
    """
    ranks, one_round = source.ranks, min(source.ranks.size, size)
    while chunk := list(islice(batches, one_round)):
        if ranks.are_many:
            Pulse(chunk[0][0], data=source.digest).beat(ranks, source.name)
        yield _turns(chunk, batches, size, ranks) if size > one_round else [_turn(chunk, ranks, is_last=True)]
    _, read = source.facts.whole_pass or (0, 0)
    Pulse(read, is_end=True, data=source.digest).beat(ranks, source.name)


def _turns(chunk: list[Numbered], batches: Iterator[Numbered], size: int, ranks: Ranks) -> Iterator[Turn]:
    left = size - len(chunk)
    while chunk:
        following = list(islice(batches, min(ranks.size, left)))
        left -= len(following)
        yield _turn(chunk, ranks, is_last=not following)
        chunk = following


def _turn(chunk: list[Numbered], ranks: Ranks, *, is_last: bool) -> Turn:
    counts = ranks.rank < len(chunk)
    index, batch = chunk[ranks.rank if counts else -1]
    return Turn(index, batch, counts, is_last)
