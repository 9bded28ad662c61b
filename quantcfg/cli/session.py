"""What every command that loads a model does around its work: streams, warnings, and the job itself."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from quantcfg.cli import options
from quantcfg.cli.boundary import report
from quantcfg.cli.exits import exits_told
from quantcfg.cli.launch import Launch, launch_of
from quantcfg.cli.streams import nowhere, stdout_for_results
from quantcfg.errors import Interrupted, QuantcfgWarning, UsageError

if TYPE_CHECKING:
    from quantcfg.config.load import Config
    from quantcfg.stages.job import Job
    from quantcfg.stages.ranks import Ranks

_MEETING_S = 600.0  # how long ranks wait for each other that have nothing to do but to say so
_NOT_FOR_USERS = (
    DeprecationWarning,
    PendingDeprecationWarning,
    FutureWarning,
    ImportWarning,
    ResourceWarning,
)


@contextmanager
def session(*, quiet: bool, verbose: bool, timeout: float | None = None) -> Iterator[Ranks | None]:
    """What user code prints goes to stderr, and every warning too; afterwards we are where we were before.

    Gives the ranks that torchrun started, of which the first alone prints, or None. They wait for each other
    for ``timeout`` seconds at most; a command without it works in one process.
    """
    from quantcfg.render.console import say
    from quantcfg.render.log import logging_on_stderr
    from quantcfg.stages.signals import Ended
    from quantcfg.stages.user_code import called_back

    launch = launch_of(os.environ)
    speaks = launch is None or launch.rank == 0

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if speaks and not quiet:
            say("warning", str(message))

    with (
        ExitStack() as stack,
        stdout_for_results(sys.stderr if speaks else stack.enter_context(nowhere())),
        warnings.catch_warnings(),
        logging_on_stderr(enabled=verbose and speaks),
        _ranks_of(launch, timeout) as ranks,
        exits_told(),
        called_back(),
        chdir("."),
    ):
        warnings.simplefilter("default")
        for category in _NOT_FOR_USERS:
            warnings.simplefilter("ignore", category)
        warnings.simplefilter("default", QuantcfgWarning)
        warnings.showwarning = show
        try:
            yield ranks
        except Ended:  # further out it is said by which signal
            raise
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None


def raise_once(error: UsageError) -> NoReturn:
    """Raise what is wrong with a command line. All ranks of torchrun have the same: one of them says it."""
    launch = launch_of(os.environ)
    if launch is None or launch.size == 1:
        raise error
    with session(quiet=True, verbose=False, timeout=_MEETING_S) as ranks:
        assert ranks is not None
        with ranks.alike():
            raise error


@contextmanager
def _ranks_of(launch: Launch | None, timeout: float | None) -> Iterator[Ranks | None]:
    if timeout is None and (launch is None or launch.size == 1):
        yield None
        return
    from quantcfg.stages.signals import ending_by_signals, resume_command

    command = resume_command(_command()) if timeout is not None else ""
    if launch is None:
        with ending_by_signals(command, can_insist=True):
            yield None
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else DDP warns once per rank
    from quantcfg.stages.meeting import meeting

    say = partial(report, debug="--debug" in options.COMMAND_LINE.get())
    place = {"rank": launch.rank, "size": launch.size, "local_rank": launch.local_rank}
    with meeting(timeout or _MEETING_S, say, **place, command=command) as ranks:
        if timeout is None:
            with ranks.alike():
                raise UsageError("this command works in one process", hint="torchrun is for calib and qat")
        yield ranks


def make_job(
    model: str,
    config: Path,
    overrides: list[str] | None,
    *,
    seed: int,
    device: str,
    quiet: bool,
    ranks: Ranks | None = None,
) -> Job:
    """What a stage works with, from what stands on the command line; warnings of the config are shown."""
    from quantcfg.config.load import load_config
    from quantcfg.render.diagnostics import print_diagnostics

    loaded = load_config(config, overrides=overrides or ())  # first: it is quick, and most mistakes are in it
    speaks = ranks is None or ranks.is_first
    if loaded.warnings and not quiet and speaks:
        print_diagnostics(loaded.warnings)
    return job_with(model, loaded, seed=seed, device=device, quiet=quiet or not speaks, ranks=ranks)


def job_with(
    model: str, config: Config, *, seed: int, device: str, quiet: bool, ranks: Ranks | None = None
) -> Job:
    """The same with a config that is loaded already."""
    from quantcfg.render.progress import progress_on_stderr
    from quantcfg.stages.job import Job, choose_device
    from quantcfg.stages.model_file import load_model_file
    from quantcfg.stages.ranks import ALONE

    directory = Path.cwd()  # before code of the user runs
    return Job(
        model_file=load_model_file(model),
        config=config,
        seed=seed,
        device=choose_device(device),
        progress=progress_on_stderr(quiet=quiet),
        command=_command(),
        ranks=ranks or ALONE,
        directory=directory,
    )


def _command() -> tuple[str, ...]:
    launch = launch_of(os.environ)
    program = ("quantcfg",) if launch is None else launch.command("quantcfg")
    return (*program, *options.COMMAND_LINE.get())


def config_of(path: Path) -> Config:
    """The config at a path, or the one that the run there used.

    Raises:
        UsageError: It is a directory, and no run is in it.
    """
    from quantcfg.config.load import load_config
    from quantcfg.runs.directory import RunDirectory

    if not path.is_dir():
        return load_config(path)
    resolved = RunDirectory(path).resolved_config
    if not resolved.is_file():
        raise UsageError(f"'{path}' is not a run directory", hint="name a config, or a directory of a run")
    return load_config(resolved)
