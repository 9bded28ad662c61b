"""How ranks come together, and how they part when one of them fails: with one message, which names it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from quantcfg.errors import ConfigError, EchoError, ExitCode, Interrupted, QuantcfgError, RunError, UsageError
from quantcfg.stages.ranks import LostRankError, Ranks, is_lost_rank, lost_ranks
from quantcfg.stages.signals import ending_by_signals

# How long a rank that is alive may take to answer when another one is missed. After a timeout it may itself
# still be waiting for its own, after a signal it may be busy, and torchrun leaves it 30 s.
_ROLL_CALL_S, _BUSY_S = 10.0, 20.0
_POSTING_S = 1.0  # how long the first that fails may take to post its exit code
_POLL_S = 0.05
_FAILED, _CODE, _SAID = "failed", "code", "said"
_CAME, _PRESENT, _DONE = "came", "present", "done"  # each with a rank


@dataclass(frozen=True, slots=True)
class Meeting:
    """The ranks of a run, and the board on which the first that fails leaves its name.

    The board is the store that torchrun keeps: it outlives every rank. ``machine`` is the first rank of this
    one's machine. ``say`` tells the user what ended a rank, and gives its exit code.
    """

    ranks: Ranks
    machine: int
    board: Store
    timeout: float
    say: Callable[[BaseException], int]

    def come(self) -> None:
        """Let the others know that this one has begun, where it is, and that it will answer them."""
        self._post(_CAME, f"{self.machine} {os.getpid()}")

    def join(self, store: Store) -> None:
        """Connect with the others.

        Raises:
            LostRankError: some did not come.
        """
        self.ranks.at("the rendezvous")
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        with lost_ranks():
            self._wait_for_all(_CAME)
            dist.init_process_group(
                backend,
                store=PrefixStore("group", store),
                rank=self.ranks.rank,
                world_size=self.ranks.size,
                timeout=timedelta(seconds=self.timeout),
            )
        self.ranks.at("")

    def part(self) -> None:
        """Leave when all have done their part: who goes too early looks lost to those that have not.

        Raises:
            LostRankError: some have not in time.
        """
        self.ranks.at("the final write")
        self._post(_DONE)
        with suppress(RuntimeError):  # the last to leave may take the board with them
            self._wait_for_all(_DONE)
        dist.destroy_process_group()

    def conclude(self, error: BaseException) -> EchoError:
        """See to it that one of all ranks has said why they end before this one does, and give its code.

        As soon as one ends, torchrun sends signals to the others, for which saying it would be too late.
        """
        verdict = self._verdict(error)
        if isinstance(verdict, EchoError):
            self._hear_out()
            return verdict
        if verdict is not error:
            verdict.__cause__ = error
        try:
            return EchoError(self.say(verdict))
        finally:
            with suppress(RuntimeError):
                self.board.set(_SAID, "1")

    def _hear_out(self) -> None:
        deadline = time.monotonic() + self.timeout
        with suppress(RuntimeError):  # the board has gone with torchrun
            while not self.board.check([_SAID]) and time.monotonic() < deadline:
                time.sleep(_POLL_S)

    def _verdict(self, error: BaseException) -> BaseException:
        """What this rank has to say after ``error``: one of all ranks speaks, the others echo its code."""
        if is_lost_rank(error):
            return self._about_lost(error)
        if self.ranks.whereabouts.is_common(error):
            return self._common(error)
        if isinstance(error, Interrupted):  # maybe by torchrun, because another rank has ended
            return self._about_lost(error)
        return self._named(error) if self._is_first_to_fail(error) else EchoError(self._posted(error))

    def _about_lost(self, error: BaseException) -> BaseException:
        self._post(_PRESENT)
        is_told = isinstance(error, Interrupted)
        patience = _BUSY_S if is_told else min(_BUSY_S, self.timeout) if _timed_out(error) else 0
        missing = self._missing(max(_ROLL_CALL_S, patience), but_not_busy=is_told)
        if self._read(_FAILED) is not None:  # somebody failed and has said so, or is about to
            return EchoError(self._posted(error))
        cause: QuantcfgError = RunError(self._sentence(missing, error), hint=_HINT)
        if isinstance(error, Interrupted) and not missing:
            cause = self._with_those_to_come(error)
        return cause if self._is_first_to_fail(cause) else EchoError(self._posted(cause))

    def _with_those_to_come(self, error: Interrupted) -> Interrupted:
        late = [rank for rank in range(self.ranks.size) if not self._has_come(rank)]
        if late:  # torchrun may have ended this one because of them
            error.message += f" before {_names(late)} had come"
        return error

    def _sentence(self, missing: list[int], error: BaseException) -> str:
        where = f" in {self.ranks.whereabouts.place}" if self.ranks.whereabouts.place else ""
        if not missing:
            return f"the ranks lost each other{where}: {_first_line(error)}"
        is_slow = _timed_out(error) and not any(self._is_alive(rank) is False for rank in missing)
        how = f"did not answer for {self.timeout:g} s" if is_slow else "ended without a word"
        return f"{_names(missing)} {how}{where}"

    def _common(self, error: BaseException) -> BaseException:
        if not self.ranks.is_first:
            return EchoError(_code_of(error))
        self._is_first_to_fail(error)
        return error

    def _named(self, error: BaseException) -> BaseException:
        if isinstance(error, QuantcfgError) and not isinstance(error, ConfigError | UsageError):
            error.message = f"rank {self.ranks.rank}: {error.message}"
        return error

    def _is_first_to_fail(self, error: BaseException) -> bool:
        try:
            is_first = bool(self.board.add(_FAILED, 1) == 1)
            if is_first:
                self.board.set(_CODE, str(_code_of(error)))
        except RuntimeError:  # torchrun is gone with its board: better said twice than not at all
            return True
        return is_first

    def _posted(self, error: BaseException) -> int:
        deadline = time.monotonic() + _POSTING_S
        while (code := self._read(_CODE)) is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return int(code) if code is not None else _code_of(error)

    def _post(self, key: str, value: str = "1") -> None:
        with suppress(RuntimeError):
            self.board.set(f"{key}/{self.ranks.rank}", value)

    def _wait_for_all(self, key: str) -> None:
        """Wait until every rank has posted ``key``, where signals are heard: not in torch's own waiting."""
        everyone = [f"{key}/{rank}" for rank in range(self.ranks.size)]
        deadline = time.monotonic() + self.timeout
        while not self.board.check(everyone):
            if time.monotonic() > deadline:
                raise LostRankError("timed out")
            time.sleep(_POLL_S)

    def _missing(self, patience: float, *, but_not_busy: bool) -> list[int]:
        """The ranks that do not answer, or none as soon as one of them turns out to have failed by itself.

        One whose process has gone is found at once. ``but_not_busy`` leaves out those that have something
        else to do than to answer: one that lives here, or has yet to come.
        """
        missing, deadline = list(range(self.ranks.size)), time.monotonic() + patience
        while missing and time.monotonic() < deadline and self._read(_FAILED) is None:
            missing = [rank for rank in missing if self._read(f"{_PRESENT}/{rank}") is None]
            lives = {rank: self._is_alive(rank) for rank in missing}
            if gone := [rank for rank in missing if lives[rank] is False]:
                return gone
            if but_not_busy:
                missing = [rank for rank in missing if lives[rank] is None and self._has_come(rank)]
            time.sleep(_POLL_S)
        # When one is lost while others are starting, torchrun ends those, which is not what went wrong.
        return [rank for rank in missing if self._has_come(rank)] or missing

    def _has_come(self, rank: int) -> bool:
        return self._read(f"{_CAME}/{rank}") is not None

    def _is_alive(self, rank: int) -> bool | None:
        """Whether the process of a rank is there; None where it has not come, or runs on another machine."""
        machine, _, process = (self._read(f"{_CAME}/{rank}") or "").partition(" ")
        if machine != str(self.machine):
            return None
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return False
        return True

    def _read(self, key: str) -> str | None:
        try:
            return self.board.get(key).decode() if self.board.check([key]) else None
        except RuntimeError:
            return None


_HINT = "the messages of torchrun and of the system tell more; --resume goes on from the newest checkpoint"


@contextmanager
def meeting(
    timeout: float,
    say: Callable[[BaseException], int],
    *,
    rank: int,
    size: int,
    local_rank: int,
    command: str = "",
) -> Iterator[Ranks]:
    """Join the processes that torchrun started; every collective fails after ``timeout`` seconds of waiting.

    What ends the block on some ranks or on all of them, one of them ``say``s. ``command`` goes on with what
    a signal has ended.

    Raises:
        RunError: the ranks do not find each other.
        EchoError: a rank failed or is lost, and it has been said why.
    """
    if torch.cuda.is_available() and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    ranks = Ranks(rank, size, is_launched=True)
    if not ranks.are_many:
        with ending_by_signals(command):
            yield ranks
        return
    store = _store(timeout)
    joined = Meeting(ranks, rank - local_rank, PrefixStore("quantcfg", store), timeout, say)
    try:
        with ending_by_signals(command):
            joined.come()
            joined.join(store)
            yield ranks
            joined.part()
    except BaseException as error:  # SystemExit, too: whatever ends this rank, the others have to hear of it
        raise joined.conclude(error) from error


def _store(timeout: float) -> Store:
    try:
        store: Store = next(iter(rendezvous("env://", timeout=timedelta(seconds=timeout))))[0]
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the ranks did not find each other: {_first_line(error)}") from error
    return store


def _names(ranks: Sequence[int]) -> str:
    return " and ".join(f"rank {rank}" for rank in ranks)


def _code_of(error: BaseException) -> int:
    return error.exit_code if isinstance(error, QuantcfgError) else ExitCode.BUG


def _timed_out(error: BaseException) -> bool:
    return "imed out" in str(error) or "timeout" in str(error).lower()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
