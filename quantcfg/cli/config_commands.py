"""The commands that never import torch: validate, schema, presets, observers, fake-quants."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantcfg.cli.options import Format, Overrides, ReportFormat
from quantcfg.errors import ConfigError, Diagnostic, UsageError

if TYPE_CHECKING:
    from quantcfg.config.catalogue import CatalogueEntry

STRICT_EXIT = 3


class FindingsFormat(StrEnum):
    """How the findings of `validate` are written."""

    text = "text"
    json = "json"
    github = "github"
    sarif = "sarif"


ConfigFiles = Annotated[
    list[Path], typer.Argument(metavar="CONFIG...", help="the configs, YAML or TOML", show_default=False)
]
SchemaModel = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="list the names and classes of this model")
]
Strict = Annotated[bool, typer.Option("--strict", help="warnings end with exit code 3")]
Findings = Annotated[FindingsFormat, typer.Option("--format", help="how to write the findings")]
Model = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="check the rules against this model, too")
]
Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="one of them, with all details")]


def validate(
    configs: ConfigFiles,
    model: Model = None,
    overrides: Overrides = None,
    strict: Strict = False,
    fmt: Findings = FindingsFormat.text,
) -> None:
    """Check config files. Without --model it runs nothing of yours and does not import torch."""
    if model is None:
        findings = check_configs(configs, overrides or ())
    else:
        from quantcfg.cli.model_config_commands import check_on

        findings = check_on(model, configs, overrides or ())
    write_findings(configs, findings, fmt)
    raise typer.Exit(exit_code(findings, strict=strict))


def check_configs(configs: Sequence[Path], overrides: Sequence[str]) -> list[Diagnostic]:
    """Everything there is to say about some configs, each checked on its own.

    Raises:
        UsageError: a file cannot be read.
    """
    from quantcfg.config.load import load_config

    findings: list[Diagnostic] = []
    for path in configs:
        try:
            findings += load_config(path, overrides=overrides).warnings
        except ConfigError as error:
            findings += error.diagnostics
    return findings


def write_findings(configs: Sequence[Path], findings: Sequence[Diagnostic], fmt: FindingsFormat) -> None:
    """Findings for people go to stderr and what is fine to stdout; for machines all goes to stdout."""
    from quantcfg.render.diagnostics import print_diagnostics, render_report
    from quantcfg.render.text import safe_text

    if fmt is not FindingsFormat.text:
        typer.echo(render_report(findings, fmt.value))
        return
    print_diagnostics(findings)
    if not any(item.severity == "error" for item in findings):
        for path in configs:
            typer.echo(f"{safe_text(str(path))}: ok")


def exit_code(findings: Sequence[Diagnostic], *, strict: bool) -> int:
    """1 when something is wrong, 3 when only warnings are left under ``strict``, else 0."""
    if any(item.severity == "error" for item in findings):
        return ConfigError.exit_code
    return STRICT_EXIT if strict and findings else 0


def schema(model: SchemaModel = None) -> None:
    """Print the JSON Schema of the config file; with a model, its names and classes are listed in it."""
    if model is None:
        from quantcfg.config.json_schema import schema_text

        sys.stdout.write(schema_text())
    else:
        from quantcfg.cli.model_config_commands import model_schema

        sys.stdout.write(model_schema(model))


def presets(name: Name = None, fmt: ReportFormat = Format.text) -> None:
    """List the presets, or show one with its fields in both stages."""
    from quantcfg.config.catalogue import preset_catalogue

    _show("preset", preset_catalogue(), name, fmt)


def observers(name: Name = None, fmt: ReportFormat = Format.text) -> None:
    """List the observers, or show one with its parameters and defaults."""
    from quantcfg.config.catalogue import observer_catalogue

    _show("observer", observer_catalogue(), name, fmt)


def fake_quants(name: Name = None, fmt: ReportFormat = Format.text) -> None:
    """List the kinds of fake quantize, or show one with its parameters and defaults."""
    from quantcfg.config.catalogue import fake_quant_catalogue

    _show("fake quantize", fake_quant_catalogue(), name, fmt)


def _show(what: str, entries: Mapping[str, CatalogueEntry], name: str | None, fmt: Format) -> None:
    from quantcfg.config.suggest import nearest
    from quantcfg.render.catalogue import format_entry, format_list

    if name is not None and name not in entries:
        near = nearest(name, entries)
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(entries)}"
        raise UsageError(f"there is no {what} '{name}'", hint=hint)
    if fmt is Format.json:
        shown = entries[name].as_dict() if name else [entry.as_dict() for entry in entries.values()]
        typer.echo(json.dumps(shown, indent=2))
    else:
        typer.echo(format_entry(entries[name]) if name else format_list(list(entries.values())))
