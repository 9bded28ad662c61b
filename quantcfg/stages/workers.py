"""Workers of a DataLoader that outlive a signal to all processes: their run needs them to finish its step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from quantcfg.stages.signals import STOP_SIGNALS


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
    try:
        yield
    finally:
        data.worker_init_fn = users


@dataclass(frozen=True, slots=True)
class _Start:
    """What a worker begins with; may be pickled as far as the user's own function."""

    users: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()
        if self.users is not None:
            self.users(worker)


def _obey(parent: int) -> None:
    """End this process by the SIGTERM of its parent, and by nobody else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
