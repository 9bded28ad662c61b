"""A plan on a terminal of 100 columns."""

from __future__ import annotations

import io

import torch
from rich.console import Console
from torch import Tensor, nn

from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import plan_of
from quantcfg.qconfig import get_default_qconfig
from quantcfg.render.plan import Header, print_plan


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution_of_the_block, self.activation_of_the_block = nn.Conv2d(2, 2, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution_of_the_block(x)
        return self.activation_of_the_block(self.activation_of_the_block(y) + y)


def lines_of_plan(*, expand: bool) -> list[str]:
    model = nn.Sequential(*(Block() for _ in range(12)))
    prepared = prepare(model, {"": get_default_qconfig()}, example_inputs=torch.randn(1, 2, 4, 4))
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    print_plan(console, plan_of(prepared), Header("model.py", ("config.yaml",), ()), expand=expand)
    return console.file.getvalue().splitlines()


def test_no_line_is_wider_than_the_terminal() -> None:
    for expand in (False, True):
        assert max(map(len, lines_of_plan(expand=expand))) <= 100


def test_modules_that_are_called_often_are_named_together() -> None:
    assert "shared     {0..11}.activation_of_the_block (2 calls each)" in lines_of_plan(expand=False)


def test_a_long_reason_goes_on_below_where_it_began() -> None:
    lines = lines_of_plan(expand=False)
    start = next(index for index, line in enumerate(lines) if line.startswith("not fused"))

    assert lines[start : start + 2] == [
        "not fused  0.convolution_of_the_block + 0.activation_of_the_block: what 0.convolution_of_the_block",
        "           makes is read 2 times: 0.activation_of_the_block, 0.add_0",
    ]
