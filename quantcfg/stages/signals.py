"""Signals that ask a run to stop: noted at once, obeyed between two steps."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeAlias

from quantcfg.errors import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_AGAIN_S = 0.01
_Handlers: TypeAlias = Mapping[signal.Signals, Any]


class Stopped(KeyboardInterrupt):
    """Breaks off what is made anew when the run goes on. Code that catches what went wrong lets it pass."""


@dataclass(slots=True)
class StopRequest:
    """Whether somebody asked the run to stop, and by which signal."""

    received: signal.Signals | None = None
    is_obeyed_at_once: bool = field(default=False, init=False)
    _before: _Handlers = field(default_factory=dict)

    def receive(self, number: int) -> None:
        """Take over what another process received; 0 is nothing."""
        if number:
            self.received = signal.Signals(number)

    def obey(self) -> None:
        """Let the signal that came, if one did, have the effect it had before us."""
        if self.received is not None:
            _as_before(self.received, self._before)

    @contextmanager
    def obeyed_at_once(self) -> Iterator[None]:
        """For a block that makes nothing to be saved: a signal ends it as if nobody collected signals.

        One that came before ends it, too. User code in the block may catch that: `obey` tells it again.
        """
        collecting = _handlers()
        self.is_obeyed_at_once = True
        try:
            self.obey()
            yield
        finally:
            self.is_obeyed_at_once = False
            _install(collecting)

    @property
    def exit_code(self) -> int:
        """What a shell gives for a process that the signal ended."""
        return 128 + (self.received or signal.SIGINT)


@contextmanager
def stop_request(*, can_insist: bool = True) -> Iterator[StopRequest]:
    """Collect stop signals during the block. After the first one the next has the effect it had before us.

    So has the first one at the end of the block, where that did not look at it any more.
    With ``can_insist`` off the next ones change nothing: torchrun hands on every signal, the one too that a
    terminal or a scheduler has sent to all processes, and ends by itself those that do not stop in time.
    """
    previous, owner = _handlers(), os.getpid()
    request = StopRequest(_before=previous)

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != owner:  # a child, which the step may need: only its parent's SIGTERM ends it
            if number == signal.SIGTERM:
                _as_before(number, previous)
            return
        request.received = request.received or signal.Signals(number)
        if can_insist:
            _install(previous)
        if request.is_obeyed_at_once:
            request.obey()

    _install(dict.fromkeys(previous, note))
    failed = True
    try:
        yield request
        failed = False
    finally:
        # A rank that fails with others is told to stop at once, and has yet to say what it saw.
        if can_insist or not failed:
            _install(previous)
    request.obey()


@contextmanager
def ending_by_signals(command: str = "", *, can_insist: bool = False) -> Iterator[None]:
    """Let a stop signal end the block by an error where nothing collects signals: before training, say.

    ``command`` goes on with the run. After the first signal the next has the effect it had before us. With
    ``can_insist`` off signals stay deaf after an error: torchrun sends one to all ranks as soon as the first
    has failed.

    Raises:
        Interrupted: A signal came.
    """
    previous, owner = _handlers(), os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != owner:
            _as_before(number, previous)
            return
        if can_insist:
            _install(previous)
        message = f"stopped by {signal.Signals(number).name}"
        raise Interrupted(message, command=command, exit_code=128 + number)

    def begin() -> None:
        _install(dict.fromkeys(previous, end))

    begin()
    try:
        with _raised_again(begin):
            yield
    except BaseException:  # SystemExit, too: torchrun does not tell errors apart
        _install(previous if can_insist else dict.fromkeys(previous, signal.SIG_IGN))
        raise
    _install(previous)


@contextmanager
def _raised_again(begin: Callable[[], None]) -> Iterator[None]:
    """Send a signal anew whose error was lost: Python drops what is raised in a ``__del__`` or by a fork.

    ``begin`` lets signals raise errors once more.
    """
    before, sent = sys.unraisablehook, list[threading.Timer]()

    def send() -> None:
        os.kill(os.getpid(), numbers.pop())

    def note(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, Interrupted):
            before(lost)
            return
        begin()
        if not numbers:
            numbers.append(lost.exc_value.exit_code - 128)
            sent.append(threading.Timer(_AGAIN_S, send))
            sent[-1].start()

    numbers: list[int] = []  # of the signal that is to be sent, or none
    sys.unraisablehook = note
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in sent:
            timer.cancel()


def resume_command(command: Sequence[str]) -> str:
    """The command line that goes on with the run of ``command``, which is not to begin again by force."""
    words = [word for word in command if word != "--force"]
    if "--checkpoint" in words:  # that one may be gone by now, and is not the newest
        place = words.index("--checkpoint")
        del words[place : place + 2]
    words = [word for word in words if not word.startswith("--checkpoint=")]
    return shlex.join((*words, *(() if "--resume" in words else ("--resume",))))


def _handlers() -> _Handlers:
    """What stop signals do now. None outside of the main thread: only there can handlers be set."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    if handlers[signal.SIGHUP] is signal.SIG_IGN:  # by nohup: the run is to outlive its terminal
        del handlers[signal.SIGHUP]
    return handlers


def _install(handlers: _Handlers) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _as_before(number: int, previous: _Handlers) -> None:
    """Let a signal do what it does without our handlers, which a child inherits, too."""
    _install(previous)
    os.kill(os.getpid(), number)
