"""The two consoles: stdout for the result, stderr for everything else."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from quantcfg.render.text import safe_text, wants_colour

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold", "hint": "bold cyan"}
_PIPE_WIDTH = 1000  # columns: in a file or pipe a row of a table is one line


def result_console() -> Console:
    """Where the result of a command goes."""
    return _console(stderr=False)


def message_console() -> Console:
    """Where progress, notes, warnings and errors go."""
    return _console(stderr=True)


def say(kind: str, text: str) -> None:
    """Print ``kind: text`` to stderr; ``kind`` is error, warning, note or hint."""
    line = Text.assemble((f"{kind}:", _STYLES[kind]), " ", safe_text(with_short_paths(text)))
    message_console().print(line, soft_wrap=True)


def with_short_paths(text: str) -> str:
    """The text with paths below the current directory as people type them."""
    try:
        return text.replace(f"{Path.cwd()}{os.sep}", "")
    except FileNotFoundError:  # code of the user has deleted it
        return text


def print_json(value: Any) -> None:
    """Print ``value`` to stdout as JSON, in ASCII, so that no name in it can steer a terminal."""
    print(json.dumps(value, indent=2))


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    is_terminal = stream.isatty()
    return Console(
        file=stream,
        width=None if is_terminal else _PIPE_WIDTH,
        color_system="auto" if wants_colour(stream) else None,
        highlight=False,
        markup=False,
        emoji=False,
        force_terminal=is_terminal,  # a pipe gets no escape codes, whatever FORCE_COLOR says
    )
