"""The commands that load a model: calib, qat, eval. Each parses, calls one function and renders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantcfg.cli import options
from quantcfg.cli.session import make_job, session

_From = Annotated[
    Path | None,
    typer.Option("--from", metavar="RUN", help="the calibration run to start from; default: run one"),
]
_Statistics = Annotated[
    Path | None,
    typer.Option("--from", metavar="RUN", help="recalculate from what this calibration run counted"),
]

_Integer = Annotated[
    bool,
    typer.Option("--integer/--no-integer", help="also the model that computes in integers"),
]
_AlsoInteger = Annotated[
    bool,
    typer.Option("--integer", help="also evaluate the model that computes in integers, in the end"),
]
_TensorBoard = Annotated[
    bool,
    typer.Option("--tensorboard", help="also write what metrics.jsonl says as events for TensorBoard"),
]


def calib(
    model: options.Model,
    config: options.ConfigFile,
    *,
    source: _Statistics = None,
    integer: _AlsoInteger = False,
    output: options.Output = None,
    overrides: options.Overrides = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    resume: options.Resume = False,
    checkpoint: options.Checkpoint = None,
    force: options.Force = False,
    timeout: options.Timeout = 600.0,
    output_format: options.ReportFormat = options.Format.text,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Calibrate, evaluate, write a run directory.

    With --from it takes the statistics of another calibration run instead of data.
    """
    del debug
    path = output or _default_output(config, "calib")
    # before code of the user runs, which may change the current directory
    target, start = path.absolute(), source.absolute() if source else None
    named = checkpoint.absolute() if checkpoint else None
    with session(quiet=quiet, verbose=verbose, timeout=timeout) as ranks:
        from quantcfg.runs.directory import RunDirectory, open_run
        from quantcfg.stages.calib import run_calib

        job = make_job(model, config, overrides, seed=seed, device=device, quiet=quiet, ranks=ranks)
        with open_run(target, resume=resume, force=force, writes=job.ranks.is_first, checkpoint=named) as run:
            run_calib(job, run, RunDirectory(start) if start else None, integer=integer)
    if job.ranks.is_first:
        _print_run(path, output_format)


def qat(
    model: options.Model,
    config: options.ConfigFile,
    *,
    source: _From = None,
    integer: _AlsoInteger = False,
    tensorboard: _TensorBoard = False,
    output: options.Output = None,
    overrides: options.Overrides = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    resume: options.Resume = False,
    checkpoint: options.Checkpoint = None,
    force: options.Force = False,
    timeout: options.Timeout = 600.0,
    output_format: options.ReportFormat = options.Format.text,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Train with quantization, write a run directory.

    Training starts from the calibration of --from; without it, it calibrates first.
    """
    del debug
    path = output or _default_output(config, "qat")
    target, start = path.absolute(), source.absolute() if source else None
    named = checkpoint.absolute() if checkpoint else None
    with session(quiet=quiet, verbose=verbose, timeout=timeout) as ranks:
        from quantcfg.runs.directory import open_run
        from quantcfg.stages.qat import run_qat

        job = make_job(model, config, overrides, seed=seed, device=device, quiet=quiet, ranks=ranks)
        with open_run(target, resume=resume, force=force, writes=job.ranks.is_first, checkpoint=named) as run:
            run_qat(job, run, start, integer=integer, tensorboard=tensorboard)
    if job.ranks.is_first:
        _print_run(path, output_format)


def evaluate(
    model: options.Model,
    run: options.Run,
    *,
    integer: _Integer = True,
    device: options.Device = "auto",
    output_format: options.ReportFormat = options.Format.text,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Evaluate a finished run, in float, quantized and in integers.

    Writes nothing. Config, seed and weights of the quantized model are those of the run.
    """
    del debug
    with session(quiet=quiet, verbose=verbose):
        from quantcfg.runs.directory import RunDirectory
        from quantcfg.stages.eval import evaluate_run

        directory = RunDirectory(run.absolute())
        directory.verify()
        job = make_job(model, directory.resolved_config, None, seed=0, device=device, quiet=quiet)
        result, timing = evaluate_run(job, directory, integer=integer)
    _print_report(run, result, timing, output_format)


def _default_output(config: Path, stage: str) -> Path:
    return Path("runs") / f"{config.stem}-{stage}"


def _print_run(path: Path, output_format: options.Format) -> None:
    from quantcfg.runs.directory import RunDirectory

    run = RunDirectory(path)
    _print_report(path, run.read_result(), run.read_timing(), output_format)


def _print_report(
    path: Path, result: dict[str, Any], timing: dict[str, float], output_format: options.Format
) -> None:
    from quantcfg.render.console import print_json, result_console
    from quantcfg.render.results import RunReport, print_report
    from quantcfg.stages.guards import raise_unless_held, read_results

    report = RunReport(str(path), result, timing)
    if output_format is options.Format.json:
        print_json(report.to_dict())
    else:
        print_report(result_console(), report)
    raise_unless_held(read_results(result.get("guards", ())))
