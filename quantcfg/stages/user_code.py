"""The border to the user's code: what it raises becomes one sentence with their own file and line."""

from __future__ import annotations

import inspect
import os
import site
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import quantcfg.errors
from quantcfg.errors import NumericError, QuantcfgError, UserCodeError

_PACKAGE = str(Path(quantcfg.errors.__file__).parent)
_INSTALLED = (
    _PACKAGE,
    *site.getsitepackages(),
    *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib")),
)
_NOT_THE_USERS = tuple(f"{Path(folder).resolve()}{os.sep}" for folder in _INSTALLED)


@contextmanager
def user_code(what: str, function: Callable[..., Any] | None = None) -> Iterator[None]:
    """Turn what the block raises into a `UserCodeError` that begins with ``what`` and names the line.

    ``function`` gives the line when no frame of the traceback is the user's: wrong arguments, say.
    Our own errors pass as they are.
    """
    try:
        yield
    except QuantcfgError:
        raise
    except SyntaxError as error:
        where = f"{Path(error.filename).absolute()}:{error.lineno}" if error.filename else place_of(function)
        raise _error(what, error, where) from error
    except (Exception, SystemExit) as error:
        where = innermost_line(error.__traceback__) or place_of(function)
        raise _error(what, error, where) from error


@contextmanager
def in_batch(what: str, index: int) -> Iterator[None]:
    """Add to errors of the model, and of its observers, the batch that caused them. Batches count from 0."""
    try:
        with user_code(f"the model, in batch {index} of {what}(),"):
            yield
    except NumericError as error:
        message = f"{error.message}, in batch {index} of {what}()"
        raise NumericError(message, hint=error.hint, quantizer=error.quantizer) from error


@contextmanager
def loader_workers() -> Iterator[None]:
    """Tell the death of a DataLoader's worker, raised wherever the program just is, from faults of ours."""
    try:
        yield
    except RuntimeError as error:
        if not _is_worker_death(error):
            raise
        raise _error("", error, "") from error


def innermost_line(trace: TracebackType | None) -> str:
    """``file:line`` of the deepest frame in the user's own code; empty when there is none."""
    lines = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(trace)
        if is_users(frame.filename)
    ]
    return lines[-1] if lines else ""


def is_users(filename: str) -> bool:
    """Whether a source file is neither ours nor of an installed package nor of Python itself."""
    return not filename.startswith("<") and not str(Path(filename).resolve()).startswith(_NOT_THE_USERS)


def place_of(function: Callable[..., Any] | None) -> str:
    """``file:line`` of a definition; empty when it has none."""
    if function is None:
        return ""
    try:
        code = inspect.unwrap(function)
        return f"{inspect.getfile(code)}:{inspect.getsourcelines(code)[1]}"
    except (TypeError, OSError):
        return ""


def first_line(error: BaseException) -> str:
    """The type of an exception and the first line of what it says."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_worker_death(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def _error(what: str, error: BaseException, where: str) -> UserCodeError:
    if _is_worker_death(error):
        return UserCodeError(f"a worker process of a DataLoader died: {first_line(error)}")
    if isinstance(error, SystemExit):
        return UserCodeError(
            f"{what} called sys.exit({error.code if error.code is not None else ''})", where=where
        )
    said = error.msg if isinstance(error, SyntaxError) else None
    message = (
        f"{what} raised {type(error).__name__}: {said}" if said else f"{what} raised {first_line(error)}"
    )
    return UserCodeError(message, where=where, trace="".join(traceback.format_exception(error)))
