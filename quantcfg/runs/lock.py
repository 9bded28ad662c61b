"""A lock file that keeps two runs out of one directory and never outlives its owner."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from quantcfg.errors import UsageError

NAME = ".lock"
_PID_LIMIT = 1 << 31
_ATTEMPTS = 16  # each is lost only to another process that took or freed the lock meanwhile


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that holds a lock. ``start`` (clock ticks since boot) tells two owners of one pid apart."""

    pid: int
    start: str
    host: str


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of ``directory``.

    The kernel frees a lock with its process. What a forked child of a killed run still holds is reclaimed.

    Raises:
        UsageError: a living process holds it.
    """
    path = directory / NAME
    with _alone_in(directory):
        handle = _acquire(path)
    try:
        yield
    finally:
        with suppress(OSError):  # the kernel frees the lock even if its name stays
            path.unlink()
        _close(handle)


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep others from judging a lock that is taken and not yet signed: they would see the owner before."""
    with _refused(directory):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        _close(handle)


def _acquire(path: Path) -> int:
    for _ in range(_ATTEMPTS):
        handle = _open(path)
        if _take(handle) and _is_current(handle, path):
            _sign(handle, path)
            return handle
        owner = _read_owner(handle)
        _close(handle)
        if owner and not _is_alive(owner):
            with suppress(OSError):
                path.unlink()
    raise UsageError(
        f"another run holds '{path.parent}'{f' (process {owner.pid} on {owner.host})' if owner else ''}",
        hint="wait for it, or choose another directory with -o",
    )


def _open(path: Path) -> int:
    with _refused(path.parent):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def _close(handle: int) -> None:
    """Close a file that no result counts on: it is closed even when a network file system complains."""
    with suppress(OSError):
        os.close(handle)


def _sign(handle: int, path: Path) -> None:
    try:
        with _refused(path.parent):
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(asdict(_this_process())).encode())
    except UsageError:
        _close(handle)
        raise


@contextmanager
def _refused(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write in '{directory}': {error.strerror}") from error


def _take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: what was written has to do
        owner = _read_owner(handle)
        return owner is None or not _is_alive(owner)
    return True


def _is_current(handle: int, path: Path) -> bool:
    """Whether ``path`` still names the locked file: its last owner may have unlinked it in between."""
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _read_owner(handle: int) -> Owner | None:
    try:
        owner = Owner(**json.loads(os.pread(handle, 4096, 0)))
        return owner if 0 < owner.pid < _PID_LIMIT else None
    except (OSError, ValueError, TypeError):
        return None


def _this_process() -> Owner:
    return Owner(os.getpid(), _start_of(os.getpid()), socket.gethostname())


def _is_alive(owner: Owner) -> bool:
    if owner.host != socket.gethostname():
        return True
    start = _start_of(owner.pid)
    return start == owner.start if start else _exists(owner.pid)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _start_of(pid: int) -> str:
    """Field 22 of ``/proc/PID/stat``; empty where the system has no such file."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]
