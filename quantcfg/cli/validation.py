"""`quantcfg validate` without a model: what it does, and how it is reached without typer.

Reading a command line with typer takes longer than checking a config, so the plain spelling of the command is
read here. Everything else, a wrong option or ``--help`` for instance, is typer's to read and to explain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from quantcfg.errors import ConfigError, Diagnostic, ExitCode


class FindingsFormat(StrEnum):
    """How the findings of `validate` are written."""

    text = "text"
    json = "json"
    github = "github"
    sarif = "sarif"


@dataclass(frozen=True, slots=True)
class Request:
    """What `validate` is asked to do; the names of its options are those of the command line."""

    configs: tuple[Path, ...]
    overrides: tuple[str, ...] = ()
    strict: bool = False
    output_format: FindingsFormat = FindingsFormat.text


def plain_request(arguments: Sequence[str]) -> Request | None:
    """The request of a command line of nothing but configs, ``--set``, ``--strict`` and ``--format``."""
    if arguments[:1] != ["validate"]:
        return None
    configs, overrides, strict, output_format = [], [], False, "text"
    words = iter(arguments[1:])
    for word in words:
        if word == "--strict":
            strict = True
        elif word == "--set" and (override := _value(words)):
            overrides.append(override)
        elif word == "--format" and (output_format := _value(words)) in set(FindingsFormat):
            continue
        elif word and not word.startswith("-"):
            configs.append(Path(word))
        else:
            return None
    return (
        Request(tuple(configs), tuple(overrides), strict, FindingsFormat(output_format)) if configs else None
    )


def _value(words: Iterator[str]) -> str:
    """The value of an option; empty when it is missing or looks like another option."""
    word = next(words, "")
    return "" if word.startswith("-") else word


def run_validation(request: Request) -> int:
    """Check the configs, say what was found, and give the exit code."""
    findings = check_configs(request.configs, request.overrides)
    return report(request, findings)


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


def report(request: Request, findings: Sequence[Diagnostic]) -> int:
    """Findings for people go to stderr and what is fine to stdout; for machines all goes to stdout."""
    from quantcfg.render.diagnostics import print_diagnostics, render_report
    from quantcfg.render.text import safe_text

    if request.output_format is FindingsFormat.text:
        print_diagnostics(findings)
        if not any(item.severity == "error" for item in findings):
            for path in request.configs:
                print(f"{safe_text(str(path))}: ok")
    else:
        print(render_report(findings, request.output_format.value))
    return exit_code(findings, strict=request.strict)


def exit_code(findings: Sequence[Diagnostic], *, strict: bool) -> int:
    """1 when something is wrong, 3 when only warnings are left under ``strict``, else 0."""
    if any(item.severity == "error" for item in findings):
        return ExitCode.CONFIG
    return ExitCode.WARNINGS if strict and findings else ExitCode.FINE
