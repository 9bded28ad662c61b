"""Whole outputs by ==: in 80 and 120 columns, with colour and without, piped. UPDATE_GOLDEN=1 writes them."""

import os
from pathlib import Path

import pytest

from tests.cli.conftest import RULES

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TYPOS = """\
version: 1
qconfig:
  global: w8a9
  module_name:
    conv: {preset: w8a8, activation_observr: mse}
calib: {batches: "8"}
"""
MISSES = """\
version: 1
qconfig:
  global: w8a8
  module_name:
    clasifier: w8a16
    'r*': {use: w8a8, expect: 3}
"""
CONFIGS = {"rules.yaml": f"{RULES}    drop: w8a16\n", "typos.yaml": TYPOS, "misses.yaml": MISSES}
COMMANDS = {
    "plan": ["plan", "model.py", "rules.yaml", "--against", "config.yaml", "--set", "qat.epochs=2"],
    "plan-resolved": ["plan", "model.py", "rules.yaml", "--resolved", "--set", "calib.batches=2"],
    "plan-expand": ["plan", "model.py", "rules.yaml", "--expand", "--only", "c*"],
    "explain-op": ["explain", "model.py", "rules.yaml", "classifier"],
    "explain-rule": ["explain", "model.py", "rules.yaml", "rule:global"],
    "explain-code": ["explain", "QC201"],
    "diff": ["diff", "config.yaml", "rules.yaml"],
    "diff-model": ["diff", "config.yaml", "rules.yaml", "--model", "model.py"],
    "validate": ["validate", "typos.yaml", "config.yaml"],
    "validate-model": ["validate", "misses.yaml", "rules.yaml", "--model", "model.py"],
    "init": ["init", "model.py"],
    "presets": ["presets", "w4a8_lsq"],
}
SURFACES = {
    "a terminal of 80 columns": {"columns": "80", "colour": True},
    "a terminal of 80 columns, NO_COLOR": {"columns": "80", "colour": False},
    "a terminal of 120 columns": {"columns": "120", "colour": True},
    "a terminal of 120 columns, NO_COLOR": {"columns": "120", "colour": False},
    "a pipe": None,
}


@pytest.fixture
def shown(project, monkeypatch):
    for name, text in CONFIGS.items():
        project.write(name, text)

    def on(surface, arguments):
        with monkeypatch.context() as patch:
            for name in ("NO_COLOR", "COLUMNS", "FORCE_COLOR", "COLORTERM"):
                patch.delenv(name, raising=False)
            if surface is not None:
                for stream in ("stdout", "stderr"):
                    patch.setattr(f"sys.{stream}.isatty", lambda: True)
                patch.setenv("TERM", "xterm-256color")
                patch.setenv("COLUMNS", surface["columns"])
                if not surface["colour"]:
                    patch.setenv("NO_COLOR", "1")
            done = project.run(*arguments)
        both = f"{done.out}{'[stderr]' if done.err else ''}\n{done.err}".rstrip()
        return f"{both}\n[exit code {done.code}]".replace("\x1b", "<ESC>")

    return on


@pytest.mark.parametrize("name", COMMANDS)
def test_the_whole_output(shown, name):
    parts = [f"===== on {title} =====\n{shown(how, COMMANDS[name])}\n" for title, how in SURFACES.items()]
    text = "\n".join(parts)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_escape_codes_are_only_where_colour_is_wanted(name):
    parts = (GOLDEN / f"{name}.txt").read_text().split("\n===== ")
    assert len(parts) == len(SURFACES)
    for part, surface in zip(parts, SURFACES.values(), strict=True):
        assert "<ESC>" not in part or (surface and surface["colour"])


@pytest.mark.parametrize("name", ["plan", "explain-op", "diff-model"])
@pytest.mark.parametrize("columns", [80, 120])
def test_a_table_fits_the_terminal(name, columns):
    part = (GOLDEN / f"{name}.txt").read_text().partition(f"{columns} columns, NO_COLOR =====\n")[2]
    result = part.partition("\n=====")[0].partition("[stderr]")[0]
    assert result
    assert max(map(len, result.split("\n"))) <= columns
