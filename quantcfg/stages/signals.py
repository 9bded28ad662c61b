"""Signals that ask a run to stop: noted at once, obeyed between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from quantcfg.errors import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass(slots=True)
class StopRequest:
    """Whether somebody asked the run to stop, and by which signal."""

    received: signal.Signals | None = None

    def receive(self, number: int) -> None:
        """Take over what another process received; 0 is nothing."""
        if number:
            self.received = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """What a shell gives for a process that the signal ended."""
        return 128 + (self.received or signal.SIGINT)


@contextmanager
def stop_request(*, can_insist: bool = True) -> Iterator[StopRequest]:
    """Collect stop signals during the block. After the first one the next has the effect it had before us.

    With ``can_insist`` off the next ones change nothing: torchrun hands on every signal, the one too that a
    terminal or a scheduler has sent to all processes, and ends by itself those that do not stop in time.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield request
        return
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        request.received = request.received or signal.Signals(number)
        for each, handler in previous.items() if can_insist else ():
            signal.signal(each, handler)

    for number in STOP_SIGNALS:
        signal.signal(number, note)
    failed = True
    try:
        yield request
        failed = False
    finally:
        # A rank that fails with others is told to stop at once, and has yet to say what it saw.
        for number, handler in previous.items() if can_insist or not failed else ():
            signal.signal(number, handler)


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Let a stop signal end the block by an error where nothing collects signals: before training, say.

    After an error signals stay deaf: torchrun sends one to all ranks as soon as the first has failed.

    Raises:
        Interrupted: A signal came.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        raise Interrupted(f"stopped by {signal.Signals(number).name}", exit_code=128 + number)

    previous = {number: signal.signal(number, end) for number in STOP_SIGNALS}
    try:
        yield
    except BaseException:  # SystemExit, too: torchrun does not tell errors apart
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise
    for number, handler in previous.items():
        signal.signal(number, handler)
