"""Model files and configs that ranks are tried on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

OBSERVERS = {
    "min_max": {},
    "clip": {"xmin": -0.8, "xmax": 0.9},
    "percentile": {},
    "clip_std": {"std_scale": 2.0},
    "mse": {},
    "kl": {},
    "mix": {},
}
SCHEMES = {
    "tensor": {"qscheme": "per_tensor_affine"},
    "channel": {"qscheme": "per_channel_symmetric", "ch_axis": 1},
}
CONSTANTS = {"default": {}, "mean": {"averaging_constant": 0.3}}
BLOCKS = [f"{kind}_{scheme}_{over}" for kind in OBSERVERS for scheme in SCHEMES for over in CONSTANTS]
MODEL = f"""
import os, random, signal
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

RANK, BATCH, SIZE = int(os.environ.get("RANK", 0)), 8, int(os.environ.get("SIZE", 37))
calls = {{}}


def fault(name):
    where, rank, call, what = os.environ.get("FAULT", ":0:0:").split(":")
    calls[name] = calls.get(name, 0) + 1
    if (name, RANK, calls[name]) == (where, int(rank), int(call)):
        if what == "raise":
            raise ValueError("no such image")
        if what == "nan":
            return float("nan")
        os.kill(os.getpid(), int(what))
    return 1.0


class Every(nn.Module):
    \"\"\"A layer for each observer, and one that only some batches reach.\"\"\"

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({{name: nn.Linear(6, 6) for name in {BLOCKS}}})
        self.rare = nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        first = x
        for layer in self.layers.values():
            x = layer(x) + first
        if first[0, 0] >= 0:
            x = self.rare(x)
        return self.last(self.rare(x) if first[0, 0] > 1.5 else x)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.2)
        self.unused = nn.Linear(2, 2)
        self.last = nn.Linear(24, 3)

    def forward(self, x):
        return self.last(self.drop(torch.relu(self.norm(self.conv(x[:, None]))).flatten(1)))


def dataset(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(SIZE, 6, generator=g)
    return TensorDataset(x, (x.sum(1) > 0).long() + (x[:, 0] > 0).long())


def build_model():
    torch.manual_seed(0)
    return (Every if os.environ.get("MODEL") == "every" else Small)()


def calib_data():
    for batch in DataLoader(dataset(1), batch_size=BATCH):
        fault("calib")
        yield batch


def train_data():
    for x, y in DataLoader(dataset(2), batch_size=4, shuffle=True):
        yield x + torch.rand(1) / 9 * random.random(), y


def eval_data():
    return DataLoader(dataset(3), batch_size=16)


def loss(outputs, batch):
    return F.cross_entropy(outputs, batch[1]) * fault("loss")
"""
QAT = {
    "epochs": 2,
    "accumulate": 4,
    "bn": "keep",
    "optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9},
    "check_ranks_every": 1,
}


def every_observer() -> dict[str, Any]:
    """A config in which each layer of `Every` has an observer of its own."""
    rules: dict[str, Any] = {"rare": {"activation_observer": "min_max", "weight_observer": "min_max"}}
    for kind, own in OBSERVERS.items():
        for scheme, grid in SCHEMES.items():
            for over, constant in CONSTANTS.items():
                kwargs = own | constant | {"dtype": "qint8"}
                rules[f"layers.{kind}_{scheme}_{over}"] = {
                    "activation_observer": kind,
                    "weight_observer": kind,
                    "activation_qkwargs": kwargs | grid,
                    "weight_qkwargs": kwargs,
                }
    whole = {"activation_observer": "min_max", "weight_observer": "min_max"}
    return {"version": 1, "qconfig": {"global": whole, "module_name": rules}, "qat": dict(QAT)}


def small() -> dict[str, Any]:
    return {"version": 1, "qconfig": {"global": "w8a8"}, "qat": dict(QAT)}


def write(folder: Path, config: dict[str, Any], more: str = "") -> None:
    (folder / "model.py").write_text(MODEL + more)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
