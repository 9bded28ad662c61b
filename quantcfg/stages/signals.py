"""Signals that ask a run to stop: noted at once, obeyed between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

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
