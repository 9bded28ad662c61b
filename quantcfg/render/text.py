"""Text that is safe to show: names from models and files cannot steer the terminal."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import IO

from quantcfg.config.source import STEERING


def safe_text(text: str) -> str:
    r"""The text with everything invisible or steering made visible: ESC becomes ``\x1b``."""
    return STEERING.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def percent(share: float, digits: int) -> str:
    """A share in per cent, rounded, but 100 % only where it is all."""
    whole = f"{1:.{digits}%}"
    shown = f"{share:.{digits}%}"
    return f"{1 - 10 ** -(digits + 2):.{digits}%}" if shown == whole and share < 1 else shown


def wants_colour(stream: IO[str]) -> bool:
    """Whether a stream is a terminal that colour is welcome on: never a pipe, never with NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def display_width(text: str) -> int:
    """Columns that a text takes on a terminal: wide characters take two, combining ones none."""
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
