"""A small project in an empty directory, and the command line inside this process."""

import sys
import textwrap
from dataclasses import dataclass

import pytest
import torch

from quantcfg.cli.main import main
from tests.cli.stopping import STOPPABLE

MODEL = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.drop = nn.Dropout(0.2)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.classifier(self.drop(x.mean((2, 3)) + 0.5))


def dataset(seed, size=44):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(size, 1, 4, 4, generator=g)
    return TensorDataset(x, (x.mean((1, 2, 3)) * 6).long().clamp(0, 2))


def build_model():
    torch.manual_seed(0)
    return Net()


def calib_data():
    return DataLoader(dataset(1), batch_size=8)


def train_data():
    return DataLoader(dataset(2), batch_size=8, shuffle=True)


def eval_data():
    return DataLoader(dataset(3), batch_size=16)
"""
CONFIG = """\
version: 1
qconfig:
  global: {activation_observer: min_max, weight_observer: min_max}
calib:
  batches: 4
qat:
  epochs: 3
  optimizer: {name: SGD, lr: 0.05, momentum: 0.9}
  scheduler: {name: cosine}
  schedule: {freeze_observers_after: 2}
"""
RULES = """\
version: 1
qconfigs:
  sensitive: {preset: w8a8, activation_qkwargs: {dtype: qint16}}
qconfig:
  global: w8a8
  module_type:
    Linear: sensitive
  module_name:
    class*: {preset: inherit, weight_observer: mse}
"""
"""A config with one rule of each kind on that model; a rule of a name may be added at its end."""


@dataclass(frozen=True)
class Outcome:
    """What a command line came to."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Project:
    """A directory with a model file and a config."""

    path: object
    capsys: object

    def write(self, name, text):
        (self.path / name).write_text(textwrap.dedent(text))

    def model(self, more="", *, base=MODEL):
        """Write the model file, with ``more`` after it."""
        self.write("model.py", base + textwrap.dedent(more))

    def run(self, *arguments):
        """Run ``quantcfg`` with arguments."""
        self.capsys.readouterr()
        code = main(list(arguments))
        return Outcome(code, *self.capsys.readouterr())

    def names(self, folder="."):
        """The files below a folder."""
        root = self.path / folder
        return (
            sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
            if root.exists()
            else []
        )


@pytest.fixture
def project(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Project(tmp_path, capsys)
    made.model()
    made.write("config.yaml", CONFIG)
    yield made
    torch.set_num_threads(threads)
    for name in [
        n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(f"{tmp_path}/")
    ]:
        del sys.modules[name]


@pytest.fixture
def stoppable(project, monkeypatch):
    """The project with a model file that signals itself at ``STOP=function:call:signal``."""
    project.model(STOPPABLE)
    monkeypatch.delenv("STOP", raising=False)
    return project
