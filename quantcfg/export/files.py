"""The files of an export: written into a folder aside, checked there, then moved to their place."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from quantcfg.runs.writer import TEMPORARY_MARK, naming, synchronize_names, temporary_name


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """An empty folder beside ``output``, to write its files to; it is gone when the block ends.

    Those that killed processes left there for the same output go first: nobody holds their locks.

    Raises:
        RunError: the system refused it.
    """
    folder = temporary_name(output)
    try:
        with naming(output):
            _remove_leftovers(output)
            folder.mkdir()
        with _opened(folder) as handle:
            with suppress(OSError):  # a file system without locks
                _lock(handle)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(output: Path) -> None:
    for folder in output.parent.iterdir():
        if folder.name.startswith(f".{output.name}{TEMPORARY_MARK}"):
            with suppress(OSError), _opened(folder) as handle:
                _lock(handle)
                shutil.rmtree(folder)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def durable(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to; when the block ends, the disk has it."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until the disk has a file that somebody else wrote."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def publish(folder: Path, output: Path, names: list[str]) -> None:
    """Move the files ``names`` from ``folder`` to where ``output`` is, that one last.

    Files that belong together are never seen half replaced: the old ones go first, ``output`` before the
    others, and come back where the system refuses.

    Raises:
        RunError: the system refused; everything is as it was.
    """
    ordered = sorted(names, key=lambda name: name == output.name)
    aside: list[str] = []
    moved: list[str] = []
    with naming(output):
        try:
            for name in reversed(ordered if len(ordered) > 1 else ()):
                if output.with_name(name).exists():
                    _move(output.with_name(name), folder / f"{name}.replaced")
                    aside.append(name)
            for name in ordered:
                is_new = not output.with_name(name).exists()
                _move(folder / name, output.with_name(name))
                moved += [name] if is_new else []
            synchronize_names(output.parent)
        except BaseException:
            for name in moved:
                output.with_name(name).unlink(missing_ok=True)
            for name in reversed(aside):
                _move(folder / f"{name}.replaced", output.with_name(name))
            raise


def _move(source: Path, target: Path) -> None:
    os.replace(source, target)  # noqa: PTH105  the call that the tests trace
