"""Workers of a DataLoader that outlive a signal to all processes: their run needs them to finish its step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any

from torch.utils.data import DataLoader

from quantcfg.stages.signals import STOP_SIGNALS

_WATCH_S = 1.0


@contextmanager
def lasting_workers(data: Any) -> Iterator[None]:
    """Let the workers that ``data`` starts in the block, if it is a DataLoader, end by their parent alone.

    A terminal, ``timeout`` and torchrun signal whole process groups. Workers would die at once, and with them
    the batches of the step that is to be finished before the run saves and stops.
    """
    if not (isinstance(data, DataLoader) and data.num_workers and hasattr(signal, "sigwaitinfo")):
        yield
        return
    users = data.worker_init_fn
    data.worker_init_fn = _Start(users)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until each worker has begun
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        data.worker_init_fn = users


@dataclass(frozen=True, slots=True)
class _Start:
    """What a worker begins with; may be pickled as far as the user's own function."""

    users: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        others = set(STOP_SIGNALS) - {signal.SIGTERM}
        for number in others:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, others)
        threading.Thread(target=_obey, args=(parent_process(),), daemon=True).start()
        if self.users is not None:
            self.users(worker)


def _obey(parent: Any) -> None:
    """End this process with its parent or by the SIGTERM of it, and by nobody else's.

    torch's own watch for the parent misses one that dies before the watch begins.
    """
    while parent.is_alive():
        told = signal.sigtimedwait({signal.SIGTERM}, _WATCH_S)
        if told is not None and told.si_pid == parent.pid:
            break
    os._exit(0)
