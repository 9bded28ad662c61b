"""The one way to put a file under its final name: whole, durable, or not at all."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from quantcfg.errors import RunError

TEMPORARY_MARK = ".tmp-"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# a pipe in the place of a log is an error, and not waited for until somebody reads it
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: temporary name, flush, fsync, rename, fsync of the directory.

    Whoever reads ``path`` sees the old content or the new one, also after a power cut.

    Raises:
        RunError: the system refused a step; nothing is left under a temporary name.
    """
    temporary = temporary_name(path)
    with naming(path):
        try:
            _write_durably(temporary, data)
            os.replace(temporary, path)  # noqa: PTH105  os.replace is the call that the tests trace
            synchronize_names(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, like `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as JSON whose bytes depend on the value alone."""
    write_text(path, to_json(value))


def to_json(value: Any) -> str:
    """JSON, indented by two, with a final newline. NaN and inf are refused: JSON has no word for them."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Fill a directory under a temporary name; it gets its own when the block ends well.

    A directory already at ``path`` is replaced.
    """
    temporary = temporary_name(path)
    with naming(path):
        temporary.mkdir(parents=True)
    try:
        yield temporary
        with naming(path):
            _publish_directory(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_directory(path: Path) -> None:
    """Delete a directory, or what is in its place, so that nobody ever sees half of it under its name."""
    with naming(path):
        _remove(path.rename(temporary_name(path)))


def append_line(path: Path, line: str) -> None:
    """Append one line to a log, like `append_bytes`."""
    append_bytes(path, line.encode() + b"\n")


def append_bytes(path: Path, data: bytes) -> None:
    """Append to a log by one system call, so that what a killed run wrote last is not interleaved.

    Raises:
        RunError: the system refused.
    """
    with naming(path):
        handle = os.open(path, _APPEND, 0o644)
        try:
            _write_all(handle, data)
        finally:
            os.close(handle)


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that nobody uses and that `remove_leftovers` recognises."""
    return path.with_name(f".{path.name}{TEMPORARY_MARK}{secrets.token_hex(6)}")


def remove_leftovers(directory: Path) -> list[str]:
    """Delete what a killed writer left in ``directory`` and below; returns the names."""
    leftovers = sorted(p for p in directory.rglob(f".*{TEMPORARY_MARK}*") if _is_temporary(p))
    for path in leftovers:
        with suppress(OSError):
            _remove(path)
    return [str(path.relative_to(directory)) for path in leftovers]


def synchronize(path: Path) -> None:
    """Make what was appended to a file durable."""
    _synchronize(path, os.O_NOFOLLOW | os.O_NONBLOCK)


def synchronize_names(directory: Path) -> None:
    """Make the names in a directory durable. It may be given by a link, as to a larger disk."""
    _synchronize(directory, os.O_DIRECTORY)


def _synchronize(path: Path, flags: int) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and TEMPORARY_MARK in path.name


def _write_durably(path: Path, data: bytes) -> None:
    handle = os.open(path, _CREATE, 0o644)
    try:
        _write_all(handle, data)
        os.fsync(handle)
        if (size := os.fstat(handle).st_size) != len(data):
            raise OSError(errno.EIO, f"{size} of {len(data)} bytes are there after writing them")
    finally:
        os.close(handle)


def _write_all(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a write may be short and still succeed
        rest = rest[os.write(handle, rest) :]


def _publish_directory(temporary: Path, path: Path) -> None:
    for folder in sorted((p for p in temporary.rglob("*") if p.is_dir()), reverse=True):
        synchronize_names(folder)
    synchronize_names(temporary)
    if os.path.lexists(path):
        replaced = temporary_name(path)
        path.rename(replaced)
        temporary.rename(path)
        synchronize_names(path.parent)
        with suppress(OSError):
            _remove(replaced)
    else:
        temporary.rename(path)
        synchronize_names(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name ``path``, and the system's reason, in the error of a system call that fails.

    In a directory that has no name of its own yet that is the name which the file is to have.

    Raises:
        RunError: one did.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write '{_final_name(path)}': {error.strerror or error}") from error


def _final_name(path: Path) -> Path:
    """The path with the names that its temporary directories will have."""
    return Path(*(_without_mark(part) if _is_temporary(Path(part)) else part for part in path.parts))


def _without_mark(name: str) -> str:
    return name.removeprefix(".").partition(TEMPORARY_MARK)[0]
