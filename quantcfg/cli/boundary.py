"""The edge of the program: every error becomes a few lines on stderr and its documented exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from quantcfg.errors import ConfigError, EchoError, ExitCode, QuantcfgError, UserCodeError


def exit_code_of(run: Callable[[], object], *, debug: bool) -> int:
    """Run the command line and give the exit code; with ``debug`` errors come with their traceback."""
    try:
        run()
    except (SystemExit, KeyboardInterrupt, Exception) as error:
        return report(error, debug=debug)
    return 0


def report(error: BaseException, *, debug: bool) -> int:
    """Say what ended a command line, unless somebody has said it; gives the exit code."""
    if isinstance(error, SystemExit):  # typer's own way out: 0, or 2 for a wrong command line
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, EchoError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        _say("error", "interrupted")
        return ExitCode.INTERRUPTED
    if isinstance(error, QuantcfgError):
        _report(error, debug=debug)
        return error.exit_code
    if isinstance(error, OSError) and error.filename:  # a path that the system does not even let us look at
        _say("error", f"cannot use '{error.filename}': {error.strerror}")
        print(_trace(error) if debug else "", end="", file=sys.stderr)
        return ExitCode.RUN
    _report_bug(error, debug=debug)  # the edge: whatever is not deliberate is a bug of ours, and says so
    return ExitCode.BUG


def _report(error: QuantcfgError, *, debug: bool) -> None:
    if isinstance(error, ConfigError):
        from quantcfg.render.diagnostics import print_diagnostics

        print_diagnostics(error.diagnostics)
    else:
        where = f"{error.where}: " if isinstance(error, UserCodeError) and error.where else ""
        _say("error", where + error.message)
    if error.hint:
        _say("hint", error.hint)
    if debug:
        trace = error.trace if isinstance(error, UserCodeError) and error.trace else _trace(error)
        print(trace, end="", file=sys.stderr)


def _report_bug(error: BaseException, *, debug: bool) -> None:
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    _say("error", f"a bug in quantcfg: {type(error).__name__}: {error} (at {place})")
    if debug:
        print(_trace(error), end="", file=sys.stderr)
    else:
        _say("hint", "please report it, with what the same command says with --debug")


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _say(kind: str, text: str) -> None:
    from quantcfg.render.console import say

    say(kind, text)
