"""What every command that loads a model does around its work: streams, warnings, and the job itself."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantcfg.cli import options
from quantcfg.errors import Interrupted, QuantcfgWarning, UsageError

if TYPE_CHECKING:
    from quantcfg.config.load import Config
    from quantcfg.stages.job import Job

_NOT_FOR_USERS = (
    DeprecationWarning,
    PendingDeprecationWarning,
    FutureWarning,
    ImportWarning,
    ResourceWarning,
)


@contextmanager
def session(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """What user code prints goes to stderr, and every warning too; afterwards we are where we were before."""
    from quantcfg.render.console import say
    from quantcfg.render.log import logging_on_stderr

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if not quiet:
            say("warning", str(message))

    from quantcfg.stages.user_code import loader_workers

    with (
        redirect_stdout(sys.stderr),
        warnings.catch_warnings(),
        logging_on_stderr(enabled=verbose),
        loader_workers(),
        chdir("."),
    ):
        warnings.simplefilter("default")
        for category in _NOT_FOR_USERS:
            warnings.simplefilter("ignore", category)
        warnings.simplefilter("default", QuantcfgWarning)
        warnings.showwarning = show
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None


def make_job(
    model: str, config: Path, overrides: list[str] | None, *, seed: int, device: str, quiet: bool
) -> Job:
    """What a stage works with, from what stands on the command line; warnings of the config are shown."""
    from quantcfg.config.load import load_config
    from quantcfg.render.diagnostics import print_diagnostics

    loaded = load_config(config, overrides=overrides or ())  # first: it is quick, and most mistakes are in it
    if loaded.warnings and not quiet:
        print_diagnostics(loaded.warnings)
    return job_with(model, loaded, seed=seed, device=device, quiet=quiet)


def job_with(model: str, config: Config, *, seed: int, device: str, quiet: bool) -> Job:
    """The same with a config that is loaded already."""
    from quantcfg.render.progress import progress_on_stderr
    from quantcfg.stages.job import Job, choose_device
    from quantcfg.stages.model_file import load_model_file

    return Job(
        model_file=load_model_file(model),
        config=config,
        seed=seed,
        device=choose_device(device),
        progress=progress_on_stderr(quiet=quiet),
        command=("quantcfg", *options.COMMAND_LINE.get()),
    )


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
        raise UsageError(f"'{path}' is no run directory", hint="name a config, or a directory of a run")
    return load_config(resolved)
