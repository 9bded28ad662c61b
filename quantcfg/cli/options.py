"""The options that several commands share, each spelt and explained once."""

from __future__ import annotations

from contextvars import ContextVar
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

COMMAND_LINE: ContextVar[tuple[str, ...]] = ContextVar("COMMAND_LINE", default=())
"""The arguments as typed: for the manifest, and for the command that resumes a run."""


class Format(StrEnum):
    """How a report is written to stdout."""

    text = "text"
    json = "json"


class Stage(StrEnum):
    """The two stages that a config speaks of."""

    calib = "calib"
    qat = "qat"


Model: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="path/to/model.py, path/to/model.py:attr or package.module:attr"),
]
ConfigFile: TypeAlias = Annotated[Path, typer.Argument(metavar="CONFIG", help="the config, YAML or TOML")]
Run: TypeAlias = Annotated[Path, typer.Argument(metavar="RUN", help="a finished run directory")]
Output: TypeAlias = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="RUN", help="the run directory; default runs/<config>-<stage>"),
]
Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="change one value of the config: path.to.key=value; repeatable"
    ),
]
Seed: TypeAlias = Annotated[int, typer.Option("--seed", min=0, help="the seed of all that is random")]
Device: TypeAlias = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda or cuda:N; auto takes a GPU when there is one")
]
Resume: TypeAlias = Annotated[
    bool, typer.Option("--resume", help="go on with the unfinished run in the run directory, if there is one")
]
Checkpoint: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="RUN/checkpoints/STEP",
        help="like --resume, from this checkpoint and no other; later ones are dropped",
    ),
]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="replace the run in the run directory")]
Timeout: TypeAlias = Annotated[
    float,
    typer.Option(
        "--timeout", min=1.0, metavar="SECONDS", help="under torchrun: how long ranks wait for another"
    ),
]
ReportFormat: TypeAlias = Annotated[Format, typer.Option("--format", help="how to write the report")]
Quiet: TypeAlias = Annotated[bool, typer.Option("-q", "--quiet", help="only the result and errors")]
Verbose: TypeAlias = Annotated[bool, typer.Option("-v", "--verbose", help="also what goes to log.txt")]
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
