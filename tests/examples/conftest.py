"""The commands that pages show, each run once for all tests about it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from quantcfg.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Done:
    """What a command has printed, and the folder that it has run in."""

    shown: str
    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        """The ``result.json`` of the only run there."""
        (path,) = self.folder.glob("runs/*/result.json")
        return json.loads(path.read_text())


def with_what_pages_name(folder: Path) -> Path:
    """A folder in which the commands of a page find what they name, and write into nothing else."""
    for name in ("examples", "configs", "schemas"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Done]:
    """Gives what came of a command line, which is run when it is first asked for."""

    @cache
    def of(command: str) -> Done:
        program, *arguments = shlex.split(command)
        assert program == "quantcfg"
        folder = with_what_pages_name(tmp_path_factory.mktemp("page"))
        out, err = StringIO(), StringIO()
        with chdir(folder), redirect_stdout(out), redirect_stderr(err):
            main(arguments)
        return Done(out.getvalue() or err.getvalue(), folder)

    return of
