"""What configs come to on a model: the checks of `validate --model`, and explain, diff, init."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantcfg.cli import options
from quantcfg.cli.session import config_of, job_with, session
from quantcfg.errors import ConfigError, Diagnostic, ExitCode, UsageError

if TYPE_CHECKING:
    from quantcfg.config.load import Config
    from quantcfg.stages.survey import Survey

Topics = Annotated[
    list[str],
    typer.Argument(
        metavar="WHAT | MODEL CONFIG NAME",
        help="a code, a name or the path of a field; or an op of a model, or rule:PATTERN",
        show_default=False,
    ),
]
StageOption = Annotated[options.Stage, typer.Option("--stage", help="the stage to explain")]
OptionalModel = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="compare op by op on this model")
]
Compared = Annotated[Path, typer.Argument(metavar="CONFIG|RUN", help="a config, or a run directory")]


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a model runs once to be recorded, and from which seed."""

    seed: int = 0
    device: str = "cpu"


DEFAULT = Machine()


def check_on(model: str, configs: Sequence[Path], overrides: Sequence[str]) -> list[Diagnostic]:
    """The findings about configs, those of their rules on a model included. The model runs once."""
    from quantcfg.config.load import load_config

    findings: list[Diagnostic] = []
    loaded: list[Config] = []
    for path in configs:
        try:
            loaded.append(load_config(path, overrides=overrides))
        except ConfigError as error:
            findings += error.diagnostics
    if not loaded:
        return findings
    with session(quiet=True, verbose=False):
        from quantcfg.stages.survey import check_on_model

        surveyed = _survey(model, loaded[0])
        for config in loaded:
            findings += [*config.warnings, *check_on_model(config, surveyed)]
    return findings


def explain(
    topics: Topics,
    *,
    stage: StageOption = options.Stage.calib,
    overrides: options.Overrides = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    output_format: options.ReportFormat = options.Format.text,
    debug: options.Debug = False,
) -> None:
    """Explain a code, a name or a field, or what becomes of an op.

    WHAT is a code such as QC201, a preset, an observer, a fake quantize, or a field such as qat.bn.
    NAME is an op of the model, or rule:PATTERN for what a rule wins and loses.
    """
    del debug
    if len(topics) == 3:
        model, config, name = topics
        from quantcfg.config.load import load_config

        loaded, machine = load_config(Path(config), overrides=overrides or ()), Machine(seed, device)
        _explain_on_model(model, loaded, name, stage=stage, machine=machine, output_format=output_format)
    elif len(topics) == 1:
        _explain_topic(topics[0], output_format)
    else:
        raise UsageError("explain takes one WHAT, or MODEL CONFIG NAME", hint="see quantcfg explain --help")


def _explain_topic(topic: str, output_format: options.Format) -> None:
    from quantcfg.config.catalogue import CatalogueEntry
    from quantcfg.config.explain import explain_topic
    from quantcfg.render.catalogue import format_entry
    from quantcfg.render.console import print_json

    found = explain_topic(topic)
    if output_format is options.Format.json:
        print_json(found.as_dict() if isinstance(found, CatalogueEntry) else {"name": topic, "doc": found})
    else:
        typer.echo(format_entry(found) if isinstance(found, CatalogueEntry) else found)


def _explain_on_model(
    model: str,
    config: Config,
    name: str,
    *,
    stage: options.Stage,
    machine: Machine,
    output_format: options.Format,
) -> None:
    with session(quiet=True, verbose=False):
        from quantcfg.stages.explaining import explain_name

        surveyed = _survey(model, config, machine)
        explained = explain_name(surveyed, surveyed.outcome(config, stage.value), name)
    from quantcfg.render.console import print_json, result_console
    from quantcfg.render.explain import print_explanation

    if output_format is options.Format.json:
        print_json(explained.to_dict())
    else:
        print_explanation(result_console(), explained)


def diff(
    before: Compared,
    after: Compared,
    *,
    model: OptionalModel = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    output_format: options.ReportFormat = options.Format.text,
    debug: options.Debug = False,
) -> None:
    """Show what differs in meaning between two configs or runs. Exit code 4 says that something does."""
    del debug
    from quantcfg.config.compare import compare_rules, compare_settings

    runs = before.is_dir() and after.is_dir()
    a, b = config_of(before), config_of(after)
    changes, ops = compare_settings(a, b), None
    if model is None:
        changes = [*compare_rules(a, b), *changes]
    else:
        with session(quiet=True, verbose=False):
            from quantcfg.stages.op_changes import compare_on_model

            ops = compare_on_model(_survey(model, a, Machine(seed, device)), a, b)
    if runs:
        from quantcfg.stages.run_changes import compare_runs

        changes += compare_runs(before, after)
    from quantcfg.render.console import print_json, result_console
    from quantcfg.render.diff import diff_dict, print_diff

    if output_format is options.Format.json:
        print_json(diff_dict(changes, ops))
    else:
        print_diff(result_console(), (str(before), str(after)), changes, ops or ())
    raise typer.Exit(ExitCode.DIFFERENCES if changes or ops else ExitCode.FINE)


def init(
    model: options.Model,
    *,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="CONFIG", help="write it there, with a schema beside it"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the config that is there")] = False,
    debug: options.Debug = False,
) -> None:
    """Write a first config for a model. It runs as it is; its comments say what else could be written.

    Without -o it is printed. With -o the JSON Schema of this model is written beside it, for editors.
    """
    del debug
    if output is not None and output.suffix not in (".yaml", ".yml"):
        raise UsageError(f"'{output}' does not end in .yaml", hint="the starter config is YAML")
    if output is not None and output.exists() and not force:
        raise UsageError(f"'{output}' exists", hint="--force replaces it")
    target = output.absolute() if output else None
    with session(quiet=True, verbose=False):
        from quantcfg.config.load import empty_config
        from quantcfg.stages.starter import SCHEMA_NAME, starter_config
        from quantcfg.stages.survey import survey

        job = job_with(model, empty_config(), seed=0, device="cpu", quiet=True)
        surveyed = survey(job)
        text = starter_config(surveyed, model, trains=job.model_file.has("train_data"))
    if target is None:
        typer.echo(text, nl=False)
        return
    from quantcfg.runs.writer import write_text

    write_text(target.with_name(SCHEMA_NAME), _schema_of(surveyed))
    write_text(target, text)
    typer.echo(f"{output}")


def model_schema(model: str) -> str:
    """The JSON Schema with the names and classes of a model, which an editor then completes."""
    from quantcfg.config.load import empty_config

    with session(quiet=True, verbose=False):
        surveyed = _survey(model, empty_config())
    return _schema_of(surveyed)


def _schema_of(surveyed: Survey) -> str:
    from quantcfg.config.json_schema import schema_text
    from quantcfg.stages.starter import names_and_types

    return schema_text(*names_and_types(surveyed))


def _survey(model: str, config: Config, machine: Machine = DEFAULT) -> Survey:
    from quantcfg.stages.survey import survey

    return survey(job_with(model, config, seed=machine.seed, device=machine.device, quiet=True))
