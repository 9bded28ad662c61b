"""The program ``quantcfg``: its commands in reading order, and the way in."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from quantcfg.cli import run_commands
from quantcfg.cli.boundary import exit_code_of

app = typer.Typer(
    name="quantcfg",
    help="Declarative quantization of PyTorch models: a config file says how, one command does it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (run_commands.plan, run_commands.calib, run_commands.qat):
    app.command()(command)
app.command("eval")(run_commands.evaluate)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="show the version and exit"),
) -> None:
    """Declarative quantization of PyTorch models: a config file says how, one command does it."""
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"quantcfg {version_of('quantcfg')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code of design section 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code_of(lambda: app(given, prog_name="quantcfg"), debug="--debug" in given)
