"""Ends of the process by user code: none says that all went well."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from quantcfg.cli.boundary import report
from quantcfg.errors import UserCodeError


@contextmanager
def exits_told() -> Iterator[None]:
    """During the block ``os._exit(0)`` is an error of the code that calls it, as `sys.exit` is.

    Another status tells the caller already, and ends the process at once, which is what it was chosen for. A
    child process, a worker of a DataLoader for one, leaves as it likes: its parent tells how it ended.
    """
    from quantcfg.stages.user_code import Left, line_of_caller

    leave, process, is_over = os._exit, os.getpid(), threading.Event()

    def exit_(status: int) -> NoReturn:
        if status != 0 or is_over.is_set() or os.getpid() != process:
            leave(status)
        if threading.current_thread() is threading.main_thread():
            raise Left(status)
        message = f"a thread called os._exit({status})"
        leave(report(UserCodeError(message, where=line_of_caller()), debug=False))

    os._exit = exit_
    try:
        yield
    finally:
        os._exit = leave
        is_over.set()
