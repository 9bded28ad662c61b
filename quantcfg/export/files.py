"""The files of an export: written into a folder aside, checked there, then moved to their place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from quantcfg.runs.writer import naming, synchronize_names, temporary_name


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """An empty folder beside ``output``, to write its files to; it is gone when the block ends.

    Raises:
        RunError: the system refused it.
    """
    folder = temporary_name(output)
    try:
        with naming(output):
            folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
