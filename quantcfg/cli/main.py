"""The way into the program ``quantcfg``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from quantcfg.cli.boundary import exit_code_of
from quantcfg.cli.validation import plain_request, run_validation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code of design section 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code_of(lambda: _run(given), debug="--debug" in given)


def _run(arguments: list[str]) -> None:
    request = plain_request(arguments)
    if request is not None:
        raise SystemExit(run_validation(request))
    from quantcfg.cli.app import run

    run(arguments)
