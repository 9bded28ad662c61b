"""The examples of the error pages that are about a real model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from quantcfg.config.codes import CODES
from quantcfg.config.load import load_config
from quantcfg.errors import ConfigError
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import plan_of
from quantcfg.render.diagnostics import format_diagnostics

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ON_A_MODEL = [page for page in CODES.values() if page.needs_model]


class Net(nn.Module):
    """`EXAMPLE_MODEL`, as the pages describe it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.spare = nn.Linear(4, 2)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.up(self.drop(torch.relu(self.bn(self.conv(x)))))
        return self.head(x.mean((2, 3)))


def findings_of(folder, text):
    (folder / "c.yaml").write_text(text)
    config = load_config(folder / "c.yaml")
    try:
        model = prepare(Net().eval(), config, example_inputs=torch.rand(2, 1, 5, 5))
    except ConfigError as error:
        return list(error.diagnostics)
    return list(plan_of(model).findings)


@pytest.mark.parametrize("page", ON_A_MODEL, ids=lambda page: page.code)
def test_the_failing_example_gives_the_code_and_the_fixed_one_nothing(page, tmp_path):
    assert [item.code for item in findings_of(tmp_path, page.failing)] == [page.code]
    assert findings_of(tmp_path, page.fixed) == []


@pytest.mark.parametrize("colour", [False, True], ids=["plain", "colour"])
def test_the_whole_output_of_every_failing_example(colour, tmp_path):
    """UPDATE_GOLDEN=1 writes them anew. No width is asked for: lines of findings are not wrapped."""
    shown = ""
    for page in ON_A_MODEL:
        findings = findings_of(tmp_path, page.failing)
        shown += format_diagnostics(findings, colour=colour).replace(f"{tmp_path}/", "") + "\n\n"
    golden = GOLDEN / ("codes-model-colour.txt" if colour else "codes-model.txt")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(shown)
    assert shown == golden.read_text()
