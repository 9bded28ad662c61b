"""The way into the program ``quantcfg``."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from quantcfg.cli.boundary import exit_code_of
from quantcfg.cli.launch import launch_of
from quantcfg.cli.streams import nowhere
from quantcfg.cli.validation import Request, plain_request, run_validation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code of design section 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code_of(lambda: _run(given), debug="--debug" in given)


def program() -> NoReturn:
    """Run the command line of this process and end it, whatever threads a model file has left running."""
    launch = launch_of(os.environ)
    if launch is not None and launch.rank > 0:
        sys.stdout = nowhere()  # one of all ranks prints
    code = main()
    left = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if any(not thread.daemon for thread in left):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # a closed stream, or none
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _run(arguments: list[str]) -> None:
    request = plain_request(arguments)
    if request is not None:
        raise SystemExit(_validate(request))
    from quantcfg.cli.app import run

    run(arguments)


def _validate(request: Request) -> int:
    """Check configs, and end as typer lets the other commands end when nobody reads what they print."""
    try:
        code = run_validation(request)
        print(end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return 1
    return code
