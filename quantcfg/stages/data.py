"""The user's data functions as streams of batches whose order depends on (seed, epoch) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NoReturn, TypeAlias
from zlib import crc32

import torch
from torch.utils.data import DataLoader

from quantcfg.config.suggest import counted
from quantcfg.errors import UserCodeError
from quantcfg.stages.batches import cut, fault_in, tensors_in, to_device
from quantcfg.stages.fingerprint import hash_state
from quantcfg.stages.model_file import ModelFile
from quantcfg.stages.ranks import ALONE, Ranks
from quantcfg.stages.seeding import (
    SEEDS,
    batch_seeds,
    derive_seed,
    isolated_randomness,
    random_state,
    restore_random_state,
    seed_all,
    seeded,
    seeded_everywhere,
)
from quantcfg.stages.signals import StopRequest
from quantcfg.stages.user_code import place_of, user_code
from quantcfg.stages.workers import lasting_workers

_SAMPLED = 64  # values of each tensor
_SAME_DATA = "go on with the data that the run was begun with; --force starts again"
Numbered: TypeAlias = tuple[int, Any]  # a batch and its number in the pass


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What a run knows of a data function without reading more of it than it uses.

    Attributes:
        num_batches: the length that the data claimed when it was made; None when it has none.
        num_workers: the processes that load it; None when it is no DataLoader.
        first_batch: SHA-256 of the first batch of the first pass; empty before that was read.
        whole_pass: the newest pass that came to its end, counted from 0, and how many batches it had.
    """

    num_batches: int | None = None
    num_workers: int | None = None
    first_batch: str = ""
    whole_pass: Sequence[int] | None = None


@dataclass(slots=True)
class DataSource:
    """One data function of a model file, such as ``train_data``.

    It is called once; for an iterator, which can be used only once, again for each further pass. ``digest``
    tells, where ranks are many, what this rank has read in the newest pass. ``is_open``: it was called.
    """

    model_file: ModelFile
    name: str
    seed: int
    device: torch.device
    ranks: Ranks = ALONE
    digest: int = field(default=0, init=False)
    facts: DataFacts = field(default_factory=DataFacts, init=False)
    is_open: bool = field(default=False, init=False)
    _data: Iterable[Any] | None = field(default=None, init=False)
    _used: Iterator[Any] | None = field(default=None, init=False)
    _kept: tuple[Any, Mapping[str, Any]] | None = field(default=None, init=False)
    _before: Sequence[int] | None = field(default=None, init=False)

    def look(self) -> DataFacts:
        """What is known without a batch being read; the function is called if it was not yet."""
        self._open()
        return self.facts

    @property
    def exists(self) -> bool:
        """Whether the model file has the function."""
        return self.model_file.has(self.name)

    def num_batches(self) -> int | None:
        """The length that the data claims; None when it has none."""
        length = getattr(self._open(), "__len__", None)
        with user_code(f"the length of {self.name}()", self._function):
            try:
                return int(length()) if length is not None else None
            except TypeError:  # a DataLoader over an iterable dataset has __len__ and no length
                return None

    def batches(
        self,
        epoch: int = 0,
        *,
        skip: int = 0,
        limit: int | None = None,
        after_skip: Callable[[], None] | None = None,
        stop: StopRequest | None = None,
    ) -> Iterator[Numbered]:
        """Batches ``skip`` to ``limit`` of one pass, numbered from 0, on the device.

        Every generator is seeded from (seed, name, epoch) before the pass, those of a DataLoader too, so a
        pass can be repeated. Skipped batches are read: no other way keeps the order of every loader.
        ``after_skip`` is called before the first batch that is not skipped is read. Until then a ``stop``
        ends the pass at once: what the run has is saved.

        Raises:
            UserCodeError: the data raised, gave no batch, or gave something that is none; or it has other
                batches than before the run was stopped.
        """
        batches = self._guarded(self._iterate(epoch))
        self.digest = 0
        if (read := _skip(batches, skip, stop or StopRequest()) if skip else 0) < skip:
            self._refuse(f"ended after {_batches(read)}: {skip} were read before the run was stopped")
        if after_skip is not None:
            after_skip()
        are_many = self.ranks.are_many
        for batch in islice(batches, None if limit is None else limit - skip):
            batch = self._usable(read, batch)  # noqa: PLW2901  the other one is not used
            if are_many:
                self.digest = crc32(_sample(batch), self.digest)
            if read == 0:
                self._look_at_first(epoch, batch)
            yield read, batch
            read += 1
        if not read and limit != skip:
            raise UserCodeError(f"{self.name}() gave no batch", where=self._place())
        if limit is None or read < limit:
            self._end_pass(epoch, read)

    def fingerprint(self) -> str:
        """SHA-256 of the first batch of the first pass, which is read where it was not seen yet.

        Raises:
            UserCodeError: it cannot be read.
        """
        return self.facts.first_batch or self.read_fingerprint()

    def read_fingerprint(self) -> str:
        """The same, and read in any case: where it is another one, no seed decides what the data is."""
        for _, batch in self.batches(limit=1):
            if self._data is None:  # an iterator, which is maybe the only one
                self._kept = batch, random_state()
        return self.facts.first_batch

    def go_on(self, before: DataFacts) -> None:
        """Take over what the run knew before it was stopped, and hold the passes to come against it."""
        self._before = before.whole_pass
        self.facts = replace(self.facts, whole_pass=before.whole_pass)

    def cut(self, index: int, batch: Any, samples: int) -> Any:
        """The first ``samples`` samples of a batch, or all of them where it has no more.

        Raises:
            UserCodeError: its container cannot be built again around less.
        """
        with user_code(
            f"cutting batch {index} of {self.name}() to {counted(samples, 'sample')}", self._function
        ):
            return cut(batch, samples)

    def drawing(self, index: int, epoch: int = 0) -> AbstractContextManager[None]:
        """For a block that works on one batch: what it draws depends on that batch and changes no other.

        With several ranks that holds for Python's and NumPy's generators too, with one for torch's alone.
        """
        block, place = divmod(index, SEEDS)
        seed = batch_seeds(self.seed, self.name, epoch, block)[place]
        return seeded_everywhere(seed) if self.ranks.are_many else seeded(seed)

    def _usable(self, index: int, batch: Any) -> Any:
        """``batch`` on the device, if it is one."""
        try:
            tensors = tensors_in(batch)
        except BaseException:
            with user_code(f"batch {index} of {self.name}()", self._function):
                raise
        if {tensor.device for tensor in tensors} == {self.device}:
            return batch
        if fault := fault_in(batch, tensors):
            raise UserCodeError(
                f"batch {index} of {self.name}() {fault}",
                hint="a batch is a tensor, (inputs, targets), a dict of tensors or a dataclass of tensors",
                where=self._place(),
            )
        with user_code(f"moving batch {index} of {self.name}() to {self.device}", self._function):
            return to_device(batch, self.device)

    def _look_at_first(self, epoch: int, batch: Any) -> None:
        """Note and compare what a pass begins with."""
        self._require_same(batch)
        if epoch == 0:
            self.facts = replace(self.facts, first_batch=self._hash(batch))

    def _hash(self, batch: Any) -> str:
        with user_code(f"the content of batch 0 of {self.name}()", self._function):
            return hashlib.sha256(_content(batch)).hexdigest()

    def _require_same(self, batch: Any) -> None:
        """Refuse data that differs by rank: each rank reads all of it and uses its share."""
        if not self.ranks.are_many or (odd := self.ranks.odd_one(_content(batch))) is None:
            return
        with self.ranks.alike():
            raise UserCodeError(
                f"batch 0 of {self.name}() is another one on rank {odd} than on rank 0",
                hint="give every rank the same batches, without a DistributedSampler: they are shared here",
                where=self._place(),
            )

    def _iterate(self, epoch: int) -> Iterator[Any]:
        data, seed = self._open(), derive_seed(self.seed, self.name, epoch)
        seed_all(seed)
        for generator in _generators(data):
            generator.manual_seed(seed)
        set_epoch = getattr(getattr(data, "sampler", None), "set_epoch", None)
        with user_code(f"{self.name}()", self._function):
            if set_epoch is not None:
                set_epoch(epoch)
            if getattr(data, "persistent_workers", False):
                data._iterator = None  # type: ignore[attr-defined]  # its workers cannot be seeded again
            with lasting_workers(data):
                iterator = iter(data)
        if iterator is data:
            iterator = self._unused(iterator, epoch)
            self._data = None
        return iterator

    def _unused(self, iterator: Iterator[Any], epoch: int) -> Iterator[Any]:
        """``iterator``, of which nothing was read, or the first batch alone, which is then given again."""
        kept, self._kept = self._kept, None
        if iterator is not self._used:
            self._used = iterator
            return iterator
        if kept is None or epoch:
            raise UserCodeError(
                f"{self.name}() returned an iterator that it had returned before, which is used up by now",
                hint="return a new iterator at each call, or something that can be iterated again",
                where=self._place(),
            )
        return _from_first(*kept, iterator)

    def _end_pass(self, epoch: int, count: int) -> None:
        """Compare the first pass that ends in a resumed run with the last one that did before it was stopped.

        A pass may be longer than another. So where they differ that one is counted once more.
        """
        before, self._before = self._before, None
        self.facts = replace(self.facts, whole_pass=(epoch, count))
        if before is None or self.facts.num_batches is not None or count == before[1]:
            return
        with isolated_randomness():
            again = sum(1 for _ in self._guarded(self._iterate(before[0])))
        if again != before[1]:
            had = f"{_batches(before[1])} in pass {before[0] + 1}"
            self._refuse(f"had {had} before the run was stopped, and has {again} now")

    def _refuse(self, change: str) -> NoReturn:
        raise UserCodeError(f"{self.name}() {change}", hint=_SAME_DATA, where=self._place())

    def _open(self) -> Iterable[Any]:
        if self._data is None:
            seed_all(derive_seed(self.seed, self.name))
            self._data = data = self.model_file.data(self.name)
            self.is_open, length = True, None
            with suppress(UserCodeError):  # it is raised again where the length is needed
                length = self.num_batches()
            workers = data.num_workers if isinstance(data, DataLoader) else None
            self.facts = replace(self.facts, num_batches=length, num_workers=workers)
        return self._data

    def _guarded(self, iterator: Iterator[Any]) -> Iterator[Any]:
        function, are_many = self._function, self.ranks.are_many
        index = 0
        while True:
            if are_many:
                self.ranks.at(f"batch {index} of {self.name}()")
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except BaseException:  # the border is entered only here: batches are many
                with user_code(f"{self.name}(), in batch {index},", function):
                    raise
            yield batch
            index += 1

    @property
    def _function(self) -> Callable[..., Any]:
        return self.model_file.function(self.name)

    def _place(self) -> str:
        return place_of(self._function)


def _skip(batches: Iterator[Any], count: int, stop: StopRequest) -> int:
    """Read ``count`` batches, or those that there are; how many."""
    read = 0
    with stop.obeyed_at_once():
        for _ in islice(batches, count):
            read += 1
            stop.obey()  # a loader that passes over what it cannot load may have caught the first time
    return read


def _from_first(first: Any, drawn: Mapping[str, Any], rest: Iterator[Any]) -> Iterator[Any]:
    """The ``first`` batch and the ``rest``, with the generators as they were after the first."""
    restore_random_state(drawn)
    yield first
    yield from rest


def _batches(count: int) -> str:
    return counted(count, "batch", "batches")


def _content(batch: Any) -> bytes:
    return hash_state({str(place): tensor for place, tensor in enumerate(tensors_in(batch))}).encode()


def _sample(batch: Any) -> bytes:
    """A few values of each tensor: they tell another batch, and take no time where a batch is large."""
    flat = [tensor.flatten() for tensor in tensors_in(batch)]
    return _content([values[:: max(1, values.numel() // _SAMPLED)] for values in flat])


def length_of(source: DataSource, limit: int | None) -> int | None:
    """How many batches a pass will have: the shorter of its length and ``limit``; None when unknown."""
    known = [n for n in (source.num_batches(), limit) if n is not None]
    return min(known) if known else None


def _generators(data: Iterable[Any]) -> list[torch.Generator]:
    """The generators that decide the order of a DataLoader: its own and its sampler's."""
    holders = (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None))
    found = (getattr(holder, "generator", None) for holder in holders)
    return [generator for generator in found if isinstance(generator, torch.Generator)]
