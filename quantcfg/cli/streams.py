"""Keeping stdout for results: whatever code of the user writes, closes or leaves behind."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import TextIO, cast

from quantcfg.errors import UserCodeError


class _Unclosable:
    """A stream that user code may write to and cannot close for everybody else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def close(self) -> None:
        """Stay open."""

    def detach(self) -> None:
        """Stay as it is."""


@contextmanager
def stdout_for_results(other: TextIO) -> Iterator[None]:
    """During the block what is written to stdout goes to ``other``; what is written past Python, to stderr.

    Afterwards stdout is what it was, and what is printed while the program ends goes to stderr, too.
    """
    before = sys.stderr
    with _descriptor_kept(), redirect_stdout(cast(TextIO, _Unclosable(other))):
        sys.stderr = cast(TextIO, _Unclosable(before)) if before is not None else before
        try:
            yield
        finally:
            sys.stderr = before
    _silence_the_end()


@contextmanager
def _descriptor_kept() -> Iterator[None]:
    """Descriptor 1 is stderr during the block, for processes and libraries that know nothing of Python's."""
    with suppress(OSError, ValueError, AttributeError):  # a closed stream, or none
        sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        _put_back(kept)


def _put_back(kept: int) -> None:
    try:
        os.dup2(kept, 1)
    except OSError as error:
        raise UserCodeError("code of the model file closed all open files, stdout among them") from error
    os.close(kept)


@cache
def _silence_the_end() -> None:
    """Run before the exit handlers of the user, which were registered before."""
    atexit.register(_stdout_to_stderr)


def _stdout_to_stderr() -> None:
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        sys.stdout = sys.stderr


def nowhere() -> TextIO:
    """A stream for what nobody is to read."""
    return Path(os.devnull).open("w")
