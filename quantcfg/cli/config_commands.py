"""The commands that never import torch: validate, schema, presets, observers, fake-quants."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantcfg.cli.options import Format, Overrides, ReportFormat
from quantcfg.cli.validation import FindingsFormat, Request, report, run_validation
from quantcfg.errors import UsageError

if TYPE_CHECKING:
    from quantcfg.config.catalogue import CatalogueEntry

ConfigFiles = Annotated[
    list[Path], typer.Argument(metavar="CONFIG", help="the configs, YAML or TOML", show_default=False)
]
SchemaModel = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="list the names and classes of this model")
]
Strict = Annotated[bool, typer.Option("--strict", help="warnings end with exit code 3")]
Findings = Annotated[FindingsFormat, typer.Option("--format", help="how to write the findings")]
Model = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="check the rules against this model, too")
]
Name = Annotated[str | None, typer.Argument(metavar="NAME", help="one of them, with all details")]


def validate(
    configs: ConfigFiles,
    model: Model = None,
    overrides: Overrides = None,
    strict: Strict = False,
    output_format: Findings = FindingsFormat.text,
) -> None:
    """Check config files. Without --model it runs nothing of yours and does not import torch."""
    request = Request(tuple(configs), tuple(overrides or ()), strict, output_format)
    if model is None:
        code = run_validation(request)
    else:
        from quantcfg.cli.model_config_commands import check_on

        code = report(request, check_on(model, request.configs, request.overrides))
    raise typer.Exit(code)


def schema(model: SchemaModel = None) -> None:
    """Print the JSON Schema of the config file. With a model, its names and classes are listed in it."""
    if model is None:
        from quantcfg.config.json_schema import schema_text

        sys.stdout.write(schema_text())
    else:
        from quantcfg.cli.model_config_commands import model_schema

        sys.stdout.write(model_schema(model))


def presets(name: Name = None, output_format: ReportFormat = Format.text) -> None:
    """List the presets, or show one with its fields in both stages."""
    from quantcfg.config.catalogue import preset_catalogue

    _show("preset", preset_catalogue(), name, output_format)


def observers(name: Name = None, output_format: ReportFormat = Format.text) -> None:
    """List the observers, or show the parameters of one."""
    from quantcfg.config.catalogue import observer_catalogue

    _show("observer", observer_catalogue(), name, output_format)


def fake_quants(name: Name = None, output_format: ReportFormat = Format.text) -> None:
    """List the kinds of fake quantize, or the parameters of one."""
    from quantcfg.config.catalogue import fake_quant_catalogue

    _show("fake quantize", fake_quant_catalogue(), name, output_format)


def _show(what: str, entries: Mapping[str, CatalogueEntry], name: str | None, output_format: Format) -> None:
    from quantcfg.config.suggest import nearest
    from quantcfg.render.catalogue import format_entry, format_list

    if name is not None and name not in entries:
        near = nearest(name, entries)
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(entries)}"
        raise UsageError(f"there is no {what} '{name}'", hint=hint)
    if output_format is Format.json:
        shown = entries[name].as_dict() if name else [entry.as_dict() for entry in entries.values()]
        typer.echo(json.dumps(shown, indent=2))
    else:
        typer.echo(format_entry(entries[name]) if name else format_list(list(entries.values())))
