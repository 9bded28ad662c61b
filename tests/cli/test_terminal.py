"""The output of a real terminal is that of the golden files, which are made without one."""

import fcntl
import os
import struct
import subprocess
import sys
import termios

import pytest

from tests.cli.test_golden import COMMANDS, CONFIGS, GOLDEN

ROOT = GOLDEN.parents[1]
pty = pytest.importorskip("pty")
OTHERS = {"NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "COLORTERM", "CI"}


def terminal(columns):
    """Both ends of a terminal; the first is ours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    return ours, theirs


def everything(ours):
    parts = []
    try:
        while data := os.read(ours, 1 << 16):
            parts.append(data)
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    return b"".join(parts).decode().replace("\r\n", "\n")


SURFACES = [
    ("a terminal of 80 columns", 80, {}),
    ("a terminal of 80 columns, NO_COLOR", 80, {"NO_COLOR": "1"}),
    ("a terminal of 120 columns, NO_COLOR", 120, {"NO_COLOR": "1"}),
]
CASES = [(name, *surface) for name in ("validate", "explain-code") for surface in SURFACES]
CASES += [(name, *SURFACES[0]) for name in ("plan", "explain-op")]  # these import torch


@pytest.mark.parametrize(("name", "title", "columns", "more"), CASES)
def test_a_real_terminal_shows_the_golden_output(name, title, columns, more, project):
    for file, text in CONFIGS.items():
        project.write(file, text)
    (out, their_out), (err, their_err) = terminal(columns), terminal(columns)
    kept = {key: value for key, value in os.environ.items() if key not in OTHERS}
    process = subprocess.Popen(
        [sys.executable, "-m", "quantcfg", *COMMANDS[name]],
        stdin=subprocess.DEVNULL,
        stdout=their_out,
        stderr=their_err,
        env={**kept, **more, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
    )
    os.close(their_out)
    os.close(their_err)
    shown, said = everything(out), everything(err)
    text = f"{shown}{'[stderr]' if said else ''}\n{said}".rstrip() + f"\n[exit code {process.wait()}]"
    golden = (GOLDEN / f"{name}.txt").read_text().partition(f"===== on {title} =====\n")[2]
    assert text.replace("\x1b", "<ESC>") == golden.partition("\n\n=====")[0].rstrip("\n")
