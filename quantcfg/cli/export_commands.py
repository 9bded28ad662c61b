"""The command that writes a deployable file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantcfg.cli import options
from quantcfg.cli.session import make_job, session

if TYPE_CHECKING:
    from quantcfg.export.report import ExportReport


class FileFormat(StrEnum):
    """What kind of file is written."""

    onnx = "onnx"
    safetensors = "safetensors"
    pt2 = "pt2"


def export(
    model: options.Model,
    run: options.Run,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="the file; default: RUN with the format's suffix"
        ),
    ] = None,
    file_format: Annotated[
        FileFormat | None,
        typer.Option("--format", help="the kind of file; default: export.format of the config"),
    ] = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="run the file beside the model; default: when what it needs is installed",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the file")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the report as JSON")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Write a finished run as a file that other tools take. It is checked to compute the same.

    onnx: QuantizeLinear and DequantizeLinear, weights as integers. pt2: torch.export, quantization as plain
    torch ops. safetensors: integers, scales and zero points, with a table of every op beside it. The check
    compares with the fake-quant model on eval_data(); a difference beyond the bound writes nothing.
    """
    del debug
    source, target = run.absolute(), output.absolute() if output else None
    with session(quiet=quiet, verbose=verbose):
        from quantcfg.export.export import SUFFIXES, Request, export_run
        from quantcfg.runs.directory import RunDirectory

        directory = RunDirectory(source)
        directory.verify()
        job = make_job(model, directory.resolved_config, None, seed=0, device="cpu", quiet=quiet)
        kind = file_format.value if file_format else job.config.export.format
        file = target or source.with_name(source.name + SUFFIXES[kind])
        report = export_run(job, directory, Request(file, kind, check, force))
    _print(report, as_json=as_json)


def _print(report: ExportReport, *, as_json: bool) -> None:
    from quantcfg.render.console import print_json, result_console
    from quantcfg.render.export import print_export

    if as_json:
        print_json(report.to_dict())
    else:
        print_export(result_console(), report)
