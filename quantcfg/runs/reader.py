"""The one way to read what a run left: plain files alone, as a pipe under a name of ours would hold us up."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantcfg.errors import RunError

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would wait for its other end


def read_bytes(path: Path) -> bytes:
    """The content of ``path``.

    Raises:
        FileNotFoundError: there is none.
        RunError: it cannot be read, or is no plain file: a link, a pipe, a device.
    """
    with reading(path):
        handle = os.open(path, _OPEN)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "not a plain file", str(path))
            with open(handle, "rb", closefd=False) as stream:
                return stream.read()
        finally:
            os.close(handle)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name ``path``, and the system's reason, in the error of a system call that fails.

    Raises:
        FileNotFoundError: it is not there, which may be all right.
        RunError: another one.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"cannot read '{path}': {error.strerror or error}") from error
