"""Saving beside the work: one write at a time goes on in a thread while training does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from quantcfg.errors import Interrupted


class Saver:
    """Runs writes in the order given, each after the one before has ended.

    What a write raises is raised by the next call of `begin` or `wait`: nothing is lost, and nothing goes on
    for long after a disk is full. A process that is about to fork waits first, so that no child starts with
    half of a thread.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        _SAVERS.add(self)

    def begin(self, write: Callable[[], None]) -> None:
        """Start ``write``, which shares nothing with the work that goes on.

        Raises:
            RunError: the write before this one failed.
        """
        self.wait()
        thread = threading.Thread(target=self._run, args=(write,), name="quantcfg-save")
        try:
            thread.start()
        except RuntimeError:  # the system has no thread to give: save now
            write()
            return
        self._thread = thread

    def wait(self) -> None:
        """Come back when nothing is being written.

        Raises:
            RunError: the last write failed.
        """
        self.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def join(self) -> None:
        """Like `wait`, but leave an error for the next call."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:  # whatever it is, it belongs to the thread that asked for the write
            self._error = error


@contextmanager
def settled(saver: Saver) -> Iterator[None]:
    """Wait for the last write at the end of the block, and before an interruption says that all is saved.

    Raises:
        RunError: it failed, and nothing worse ended the block.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        saver.wait()
        raise
    except BaseException:
        saver.join()
        raise
    saver.wait()


_SAVERS: WeakSet[Saver] = WeakSet()


def _join_all() -> None:
    for saver in list(_SAVERS):
        saver.join()


os.register_at_fork(before=_join_all)
