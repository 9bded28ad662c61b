"""Every error that quantcfg raises on purpose, the exit code of each, and the places they point to."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import FrameType


class ExitCode(IntEnum):
    """What a command ends with. A run that a signal ended has 128 and the number of the signal instead."""

    FINE = 0
    CONFIG = 1
    USAGE = 2
    WARNINGS = 3
    DIFFERENCES = 4
    USER_CODE = 5
    RUN = 6
    BUG = 7
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A span in a text file. Lines and columns count from 1; ``length`` is in characters on that line."""

    file: str
    line: int
    column: int = 1
    length: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding about a config: what is wrong, where, and what to do.

    ``summary`` is the headline, ``label`` the words beside the caret, ``source`` the text of the line that
    ``place`` points to, ``notes`` further facts, ``help`` the fix. ``related`` names other places involved.
    """

    code: str
    summary: str
    place: Place | None = None
    source: str = ""
    label: str = ""
    notes: tuple[str, ...] = ()
    help: str = ""
    related: tuple[tuple[Place, str], ...] = ()
    severity: str = "error"

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        return f"{where}{self.severity}[{self.code}]: {self.summary}"


class QuantcfgError(Exception):
    """Base of all deliberate errors. ``hint`` says what to do; ``exit_code`` is what the command returns."""

    exit_code: int = ExitCode.BUG

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__))


def _rebuild(cls: type[QuantcfgError], state: dict[str, object]) -> QuantcfgError:
    error = cls.__new__(cls)
    Exception.__init__(error, state.get("message", ""))
    error.__dict__.update(state)
    return error


class ConfigError(QuantcfgError):
    """The config has errors; ``diagnostics`` holds all of them, sorted by place."""

    exit_code: int = ExitCode.CONFIG

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(str(diagnostic) for diagnostic in self.diagnostics))


class UsageError(QuantcfgError):
    """The command line is wrong, or a file that it names cannot be read."""

    exit_code: int = ExitCode.USAGE


class GuardError(QuantcfgError):
    """A guard of the config does not hold."""

    exit_code: int = ExitCode.DIFFERENCES


class UserCodeError(QuantcfgError):
    """The user's model file or data raised, or lacks something; ``where`` is ``file:line`` of their code."""

    exit_code: int = ExitCode.USER_CODE

    def __init__(self, message: str, *, hint: str = "", where: str = "", trace: str = "") -> None:
        super().__init__(message, hint=hint)
        self.where = where
        self.trace = trace


class RunError(QuantcfgError):
    """The run itself failed: a quantizer never observed, a value not finite, a damaged run directory."""

    exit_code: int = ExitCode.RUN


class PrepareError(RunError):
    """A model could not be prepared; the message names the module or op site."""


class NumericError(RunError):
    """Statistics or qparams went wrong. ``quantizer`` is the site's name, filled in where it is known."""

    def __init__(self, message: str, *, hint: str = "", quantizer: str = "") -> None:
        super().__init__(message, hint=hint)
        self.quantizer = quantizer


class EchoError(QuantcfgError):
    """Another process of the run failed and says why; this one ends without a word."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


class Interrupted(QuantcfgError):  # noqa: N818  an interruption is not a fault
    """A signal ended the run at a step boundary; ``command`` resumes it."""

    exit_code: int = ExitCode.INTERRUPTED

    def __init__(self, message: str, *, command: str = "", exit_code: int = ExitCode.INTERRUPTED) -> None:
        super().__init__(message, hint=f"resume with: {command}" if command else "")
        self.command = command
        self.exit_code = exit_code


class QuantcfgWarning(UserWarning):
    """The category of every warning that quantcfg gives."""


class QuantcfgDeprecationWarning(QuantcfgWarning, DeprecationWarning):
    """A name that still works and has a replacement."""


def warn(message: str, category: type[QuantcfgWarning] = QuantcfgWarning) -> None:
    """Warn at the line of the user's code that led here, where Python's filters look for its cause."""
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_ours(frame):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in ("quantcfg", "torch")
