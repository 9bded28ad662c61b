"""The border to the user's code: what it raises becomes one sentence with their own file and line."""

from __future__ import annotations

import inspect
import os
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import quantcfg.errors
from quantcfg.errors import NumericError, PrepareError, QuantcfgError, UserCodeError

_PACKAGE = str(Path(quantcfg.errors.__file__).parent)
_INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Folders of installed packages; PYTHONPATH and .pth files add some that Python does not list."""
_FETCHING = os.path.join("torch", "multiprocessing", "reductions.py")  # noqa: PTH118  an end of a path
_LONGEST = 500  # characters of a message on one line
_IN_WORKER = re.compile(r"^Caught \w+ in DataLoader worker process")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_NOT_THE_USERS = tuple(
    f"{Path(folder).resolve()}{os.sep}"
    for folder in (_PACKAGE, *map(sysconfig.get_path, ("stdlib", "platstdlib")))
)


class user_code(AbstractContextManager[None]):  # noqa: N801  as in contextlib; a class, for one is entered per batch
    """Turn what the block raises into a `UserCodeError` that begins with ``what`` and names the line.

    ``function`` gives the line when no frame of the traceback is the user's: wrong arguments, say.
    Our own errors pass as they are.
    """

    __slots__ = ("function", "what")

    def __init__(self, what: str, function: Callable[..., Any] | None = None) -> None:
        self.what, self.function = what, function

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, QuantcfgError | KeyboardInterrupt):
            return
        # User code may raise what it likes, GeneratorExit or a root of its own.
        raise _error(self.what, error, _where(error, self.function)) from error


class in_batch(user_code):  # noqa: N801
    """Add to errors of the model, and of its observers, the batch that caused them. Batches count from 0."""

    __slots__ = ("index", "source")

    def __init__(self, source: str, index: int) -> None:
        self.source, self.index, self.function = source, index, None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        place = f"in batch {self.index} of {self.source}()"
        if isinstance(error, NumericError):
            message = f"{error.message}, {place}"
            raise NumericError(message, hint=error.hint, quantizer=error.quantizer) from error
        self.what = f"the model, {place},"
        super().__exit__(kind, error, trace)


class Left(SystemExit):
    """What ``os._exit(0)`` of user code is turned into: by itself it ends a command as if it had finished."""


@contextmanager
def called_back() -> Iterator[None]:
    """Tell what user code raises where nobody calls it by name from faults of ours.

    That are methods of a module which torch or we call, hooks, handlers of signals, and the death of a
    DataLoader's worker, which is raised wherever the program just is.
    """
    try:
        yield
    except PrepareError as error:
        cause = error.__cause__
        if cause is None or not _is_raised_by_user(cause):
            raise
        where = innermost_line(cause.__traceback__)
        raise UserCodeError(error.message, hint=error.hint, where=where) from error
    except (QuantcfgError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if not (isinstance(error, SystemExit) or is_worker_death(error) or _is_raised_by_user(error)):
            raise
        raise _error("code of the model file", error, innermost_line(error.__traceback__)) from error


def _is_raised_by_user(error: BaseException) -> bool:
    """Whether the user's code stands deeper than ours in the traceback."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(_PACKAGE):
            return False
        if is_users(frame.filename):
            return True
    return False


def _where(error: BaseException, function: Callable[..., Any] | None) -> str:
    """``file:line`` of what was raised by a block, or of the ``function`` that it called."""
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename).absolute()}:{error.lineno}" if error.filename else place_of(function)
    return _line_in_worker(error) or innermost_line(error.__traceback__) or place_of(function)


def innermost_line(trace: TracebackType | None) -> str:
    """``file:line`` of the deepest frame in the user's own code; empty when there is none."""
    return _last_line(traceback.extract_tb(trace))


def line_of_caller() -> str:
    """``file:line`` of the user's own code that led here; empty when there is none."""
    return _last_line(traceback.extract_stack())


def _last_line(frames: traceback.StackSummary) -> str:
    lines = [f"{frame.filename}:{frame.lineno}" for frame in frames if is_users(frame.filename)]
    return lines[-1] if lines else ""


def is_users(filename: str) -> bool:
    """Whether a source file is neither ours nor of an installed package nor of Python itself."""
    path = Path(filename)
    if filename.startswith("<") or not _INSTALLED.isdisjoint(path.parts):
        return False
    return not str(path.resolve()).startswith(_NOT_THE_USERS)


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
    lines = [line.strip() for line in _said(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if _IN_WORKER.search(
        lines[0]
    ):  # then the traceback of the worker follows, and what was raised is its end
        return _shortened(lines[-1])
    return _shortened(f"{type(error).__name__}: {lines[0]}")


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except (Exception, SystemExit):  # its own __str__ is user code, too
        return ""


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _line_in_worker(error: BaseException) -> str:
    """``file:line`` of the user's code in the traceback that a DataLoader's worker sent, if any."""
    said = _said(error)
    if not _IN_WORKER.search(said):
        return ""
    lines = [f"{file}:{line}" for file, line in _FRAME.findall(said) if is_users(file)]
    return lines[-1] if lines else ""


def is_worker_death(error: BaseException) -> bool:
    """Whether a DataLoader's worker died, which torch raises wherever the program just is.

    Where that is in the middle of fetching a batch from it, the connection breaks before torch can say so.
    """
    if isinstance(error, ConnectionError | EOFError):
        return any(frame.filename.endswith(_FETCHING) for frame in traceback.extract_tb(error.__traceback__))
    return isinstance(error, RuntimeError) and _said(error).startswith("DataLoader worker (pid")


def _error(what: str, error: BaseException, where: str) -> UserCodeError:
    if is_worker_death(error):
        return UserCodeError(
            f"a worker process of a DataLoader died: {first_line(error)}",
            hint="with num_workers=0 the data is read in this process, where an error names its line",
            where=where,
        )
    if isinstance(error, SystemExit):
        function = "os._exit" if isinstance(error, Left) else "sys.exit"
        given = "" if error.code is None else _shortened(str(error.code))
        return UserCodeError(f"{what} called {function}({given})", where=where)
    said = error.msg if isinstance(error, SyntaxError) else None
    message = (
        f"{what} raised {type(error).__name__}: {said}" if said else f"{what} raised {first_line(error)}"
    )
    return UserCodeError(message, where=where, trace="".join(traceback.format_exception(error)))
