"""Names from models and files cannot steer the terminal, in any command and any format."""

import json
import re

import pytest

NAMES = [
    "\x1b[31mred",
    "[bold]x[/bold]",
    "a\u202eb",
    "\x9b31m",
    "tab\there",
    "new\nline",
    "\x1b]8;;http://x\x07l",
    "y" * 300,
]
MODEL = f"""
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NAMES = {NAMES!r}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({{name: nn.Linear(3, 3) for name in NAMES}})

    def forward(self, x):
        for part in self.parts.values():
            x = part(x)
        return x


Net.__name__ = Net.__qualname__ = "Net\\x1b[2J[red]"


def build_model():
    return Net()


def calib_data():
    return DataLoader(TensorDataset(torch.rand(8, 3), torch.zeros(8, dtype=torch.long)), batch_size=4)
"""
CONFIG = r"""
version: 1
qconfig:
  global: w8a8
  module_name:
    "parts.a\u202eb": w8a16
    "re:parts\\.\e\\[31mred": w8a16
    "nowhere.\e": {use: w8a16, optional: true}
"""
BROKEN = 'version: 1\nqconfig:\n  module_name:\n    "gone\\e[31m[red]\\u202e": w8a8\n'
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
COMMANDS = [
    ["plan", "odd.py", "odd.yaml"],
    ["plan", "odd.py", "odd.yaml", "--expand"],
    ["plan", "odd.py", "odd.yaml", "--format", "json"],
    ["plan", "odd.py", "odd.yaml", "--resolved"],
    ["explain", "odd.py", "odd.yaml", "parts.\x1b[31mred"],
    ["explain", "odd.py", "odd.yaml", "parts.[bold]x[/bold]"],
    ["explain", "odd.py", "odd.yaml", "parts.\x1b[32mrad"],
    ["explain", "odd.py", "odd.yaml", "rule:parts.a\u202eb"],
    ["diff", "odd.yaml", "plain.yaml"],
    ["diff", "odd.yaml", "plain.yaml", "--model", "odd.py"],
    ["init", "odd.py"],
    ["schema", "--model", "odd.py"],
    ["validate", "odd.yaml", "--model", "odd.py"],
    ["validate", "broken.yaml", "--model", "odd.py"],
    ["validate", "broken.yaml", "--model", "odd.py", "--format", "json"],
    ["validate", "broken.yaml", "--model", "odd.py", "--format", "github"],
    ["validate", "broken.yaml", "--model", "odd.py", "--format", "sarif"],
    ["validate", "\x1b[31m.yaml"],
    ["validate", "odd.yaml", "--set", "qat.\x1b[31m=1"],
    ["calib", "odd.py", "odd.yaml", "-o", "run", "-v"],
]


@pytest.fixture
def odd(project):
    project.write("odd.py", MODEL)
    project.write("odd.yaml", CONFIG)
    project.write("broken.yaml", BROKEN)
    project.write("plain.yaml", "version: 1\nqconfig: {global: w4a4}\n")
    return project


@pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda command: " ".join(command).encode("unicode_escape").decode()
)
def test_no_name_reaches_the_terminal_as_it_is(odd, command):
    done = odd.run(*command)
    assert done.code in (0, 1, 2, 4), done.err
    assert "Traceback" not in done.err
    assert not STEERING.findall(done.out + done.err)
    if "json" in command or "sarif" in command:
        json.loads(done.out)


def test_markup_is_shown_as_text(odd):
    assert "[bold]x[/bold]" in odd.run("plan", "odd.py", "odd.yaml", "--expand").out
    assert "Net\\x1b[2J[red]" in odd.run("plan", "odd.py", "odd.yaml").out


def test_the_starter_of_such_a_model_is_a_config(odd):
    assert odd.run("init", "odd.py", "-o", "first.yaml").code == 0
    done = odd.run("validate", "first.yaml", "--model", "odd.py", "--strict")
    assert (done.code, done.err) == (0, "")
