"""The files of an export: written into a folder aside, checked there, then moved to their place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from quantcfg.runs.writer import naming, sync_directory, temporary_name


@contextmanager
def staged(output: Path, contents: Mapping[str, bytes]) -> Iterator[Path]:
    """Write ``contents``, by file name, into a folder beside ``output``; it is gone when the block ends.

    Raises:
        RunError: the system refused a step.
    """
    folder = temporary_name(output)
    try:
        with naming(output):
            folder.mkdir()
            for name, content in contents.items():
                write_durably(folder / name, content)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def publish(folder: Path, output: Path, names: list[str]) -> None:
    """Move the files ``names`` from ``folder`` to where ``output`` is, that one last.

    Raises:
        RunError: the system refused; files that were not there before are taken away again.
    """
    moved: list[Path] = []
    ordered = sorted(names, key=lambda name: name == output.name)
    with naming(output):
        try:
            for name in ordered:
                target = output.with_name(name)
                is_new = not target.exists()
                os.replace(folder / name, target)  # noqa: PTH105  the call that the tests trace
                moved += [target] if is_new else []
            sync_directory(output.parent)
        except BaseException:
            for path in moved:
                path.unlink(missing_ok=True)
            raise
