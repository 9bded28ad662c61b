"""The command that shows what a config does to a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantcfg.cli import options
from quantcfg.cli.session import config_of, job_with, session

if TYPE_CHECKING:
    from quantcfg.config.load import Config
    from quantcfg.preparation.plan import Plan
    from quantcfg.stages.op_changes import OpChange

_Only = Annotated[
    str | None,
    typer.Option("--only", metavar="NAME", help="only a name or pattern with all inside, or a role"),
]
_Against = Annotated[
    Path | None,
    typer.Option("--against", metavar="CONFIG|RUN", help="also the ops that another config treats otherwise"),
]
_Expand = Annotated[bool, typer.Option("--expand", help="one row per op instead of groups")]
_Resolved = Annotated[
    bool,
    typer.Option("--resolved", help="the flattened config with the origin of each value; runs no model"),
]


def plan(
    model: options.Model,
    config: options.ConfigFile,
    *,
    stage: Annotated[options.Stage, typer.Option("--stage", help="the stage to plan")] = options.Stage.calib,
    expand: _Expand = False,
    only: _Only = None,
    against: _Against = None,
    resolved: _Resolved = False,
    overrides: options.Overrides = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    output_format: options.ReportFormat = options.Format.text,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Show what would happen to each op, and why.

    Writes nothing. Ops that are treated alike share a row; --expand gives each its own. Ends with 4 where a
    guard on coverage, size or ops does not hold.
    """
    del debug
    from quantcfg.config.load import load_config

    loaded = load_config(config, overrides=overrides or ())
    if resolved:
        _print_resolved(loaded, output_format)
        return
    other = config_of(against) if against else None
    with session(quiet=quiet, verbose=verbose):
        from quantcfg.stages.planning import changes_against, make_plan, only_rows

        job = job_with(model, loaded, seed=seed, device=device, quiet=quiet)
        planned = make_plan(job.quietly(), stage.value)
        shown = only_rows(planned, only) if only else planned
        changes = changes_against(job, other, stage.value) if other else None
    if output_format is options.Format.json:
        _print_json(model, loaded, shown, changes)
    else:
        _print_text(model, loaded, shown, expand=expand)
        _print_changes((str(against), str(config)), changes)
    if not quiet:
        _print_findings(loaded, planned)
    from quantcfg.stages.guards import check_plan

    check_plan(loaded, planned)


def _print_resolved(config: Config, output_format: options.Format) -> None:
    from quantcfg.config.resolved import resolved_text
    from quantcfg.render.console import print_json

    if output_format is options.Format.json:
        print_json(config.flattened())
    else:
        typer.echo(resolved_text(config.tree), nl=False)


def _print_findings(config: Config, planned: Plan) -> None:
    from quantcfg.render.diagnostics import print_diagnostics

    sys.stdout.flush()  # on a terminal they stand beneath the plan
    print_diagnostics([*config.warnings, *planned.findings])


def _print_json(model: str, config: Config, planned: Plan, changes: list[OpChange] | None) -> None:
    from quantcfg.render.console import print_json
    from quantcfg.render.diff import diff_dict

    files = {"files": [str(path) for path in config.files], "overrides": list(config.overrides)}
    against = {} if changes is None else {"against": diff_dict([], changes)["ops"]}
    print_json(planned.to_dict() | {"model_file": model, "config": files} | against)


def _print_text(model: str, config: Config, planned: Plan, *, expand: bool) -> None:
    from quantcfg.render.console import result_console
    from quantcfg.render.plan import Header, print_plan

    header = Header(model, tuple(map(str, config.files)), config.overrides)
    print_plan(result_console(), planned, header, expand=expand)


def _print_changes(names: tuple[str, str], changes: list[OpChange] | None) -> None:
    from quantcfg.render.console import result_console
    from quantcfg.render.diff import print_diff

    if changes is not None:
        typer.echo()
        print_diff(result_console(), names, [], changes)
