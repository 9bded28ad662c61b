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


class Ended(KeyboardInterrupt):
    """Raised by a signal wherever the program just is. Code that catches what went wrong lets it pass."""


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
        Interrupted: A signal came, whatever else it made of the block: a library may have put an error of
            its own in the place of ours, or have passed over it.
    """
    ending = _Ending(_handlers(), can_insist)
    try:
        ending.begin()
        yield
        ending.close()
    except Interrupted:  # by a step that saw the signal, which says more
        ending.fail()
        raise
    except BaseException as error:  # SystemExit, too: torchrun does not tell errors apart
        ending.fail()
        ending.check(command, error)
        raise
    ending.check(command)


@dataclass(slots=True)
class _Ending:
    """The signal that ends a block, once it has come.

    What its handler raises Python drops in a ``__del__`` or in a fork. Such a signal is sent anew, until its
    error is not dropped.
    """

    previous: _Handlers
    can_insist: bool
    owner: int = field(default_factory=os.getpid)
    received: signal.Signals | None = None
    lost: signal.Signals | None = None
    is_over: threading.Event = field(default_factory=threading.Event)
    _hook: Callable[[sys.UnraisableHookArgs], object] = sys.unraisablehook
    _sender: threading.Thread | None = None

    def begin(self) -> None:
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._note
        _install(dict.fromkeys(self.previous, self._end))

    def _end(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner:
            _as_before(number, self.previous)
            return
        self.received = self.received or signal.Signals(number)
        if self.is_over.is_set() or self._is_noted(frame):
            return
        if self.can_insist and self._sender is None:
            _install(self.previous)
        self.lost = None
        raise Ended

    def _is_noted(self, frame: FrameType | None) -> bool:
        while frame is not None and frame.f_code is not _Ending._note.__code__:
            frame = frame.f_back
        return frame is not None

    def _note(self, lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, Ended):
            self._hook(lost)
            return
        self.lost = self.received
        _install(dict.fromkeys(self.previous, self._end))
        if self._sender is None:
            self._sender = threading.Thread(target=self._send, daemon=True)
            self._sender.start()

    def _send(self) -> None:
        while not self.is_over.wait(_AGAIN_S):
            if self.lost is not None:
                os.kill(self.owner, self.lost)

    def fail(self) -> None:
        self.close()
        if not self.can_insist:
            _install(dict.fromkeys(self.previous, signal.SIG_IGN))

    def close(self) -> None:
        self.is_over.set()
        sys.unraisablehook = self._hook
        if self._sender is not None:
            self._sender.join()
        _install(self.previous)

    def check(self, command: str, cause: BaseException | None = None) -> None:
        if self.received is not None:
            message, code = f"stopped by {self.received.name}", 128 + self.received
            raise Interrupted(message, command=command, exit_code=code) from cause


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
