"""The commands of ``quantcfg`` in reading order, as typer reads them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from quantcfg.cli.options import COMMAND_LINE
from quantcfg.cli.session import raise_once
from quantcfg.errors import UsageError

_WrongCommandLine: type[Exception] = typer.BadParameter.__mro__[1]
"""Its base for all that is wrong with a command line, which typer has no public name for."""
app = typer.Typer(
    name="quantcfg",
    help="Declarative quantization of PyTorch models: a config file says how, one command does it.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = {
    "validate": "config_commands:validate",
    "plan": "plan_command:plan",
    "calib": "run_commands:calib",
    "qat": "run_commands:qat",
    "eval": "run_commands:evaluate",
    "export": "export_commands:export",
    "presets": "config_commands:presets",
    "observers": "config_commands:observers",
    "fake-quants": "config_commands:fake_quants",
    "explain": "model_config_commands:explain",
    "diff": "model_config_commands:diff",
    "init": "model_config_commands:init",
    "schema": "config_commands:schema",
}
"""Each command with the module and function behind it, imported when it is called for."""


def register(arguments: Sequence[str]) -> None:
    """Add the command that the arguments name, or all when they name none: for help, completion, a typo."""
    first = arguments[0] if arguments else ""
    for name in [first] if first in COMMANDS else COMMANDS:
        module, _, function = COMMANDS[name].partition(":")
        app.command(name)(getattr(import_module(f"quantcfg.cli.{module}"), function))


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="show the version and exit")] = False,
) -> None:
    """Declarative quantization of PyTorch models: a config file says how, one command does it."""
    if version:
        typer.echo(f"quantcfg {_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(UsageError.exit_code)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version as version_of

    try:
        return version_of("quantcfg")
    except PackageNotFoundError:
        return "(not installed)"


def run(arguments: Sequence[str]) -> None:
    """Run one command line. It ends in `SystemExit`, or in an error."""
    COMMAND_LINE.set(tuple(arguments))
    app.registered_commands.clear()
    register(arguments)
    try:
        code = app(list(arguments), prog_name="quantcfg", standalone_mode=False)
    except _WrongCommandLine as error:
        raise_once(_usage_error(error, arguments))
    raise SystemExit(code)


def _usage_error(error: Any, arguments: Sequence[str]) -> UsageError:
    """What typer found wrong with a command line, in the form of all our errors."""
    text = error.format_message().replace("Value error, ", "").rstrip(".")  # a word of pydantic's
    usage = error.ctx.get_usage().removeprefix("Usage: ") if error.ctx else f"quantcfg {arguments[0]}"
    return UsageError(text[0].lower() + text[1:], hint=f"{' '.join(usage.split())}; -h shows more")
