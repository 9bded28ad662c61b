"""Random models as small programs: torch runs them, and an oracle can walk through the same steps."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

Step = tuple[str, str, tuple[int, ...]]
"""``call`` of a child or ``function``, its name, and which of the values so far it reads."""


class MyConv(nn.Conv2d):
    """A layer of the user's own."""


class _Conv(MyConv):
    """One that derives from it, and is private."""


LEAVES: dict[str, Callable[[], nn.Module]] = {
    "conv2d": lambda: nn.Conv2d(4, 4, 1),
    "own conv2d": lambda: MyConv(4, 4, 3, padding=1),
    "private conv2d": lambda: _Conv(4, 4, 1),
    "linear": lambda: nn.Linear(4, 4),
    "batch_norm": lambda: nn.BatchNorm2d(4),
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
}
OPS = {
    nn.Conv2d: "conv2d", MyConv: "conv2d", _Conv: "conv2d", nn.Linear: "linear", nn.BatchNorm2d: "batch_norm",
    nn.ReLU: "relu", nn.Sigmoid: "sigmoid",
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "softmax": lambda x: x.softmax(-1),
    "transpose": lambda x: x.transpose(-1, -2),
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
}
OF_TWO = ("add", "mul")
NAMES = ("conv", "conv1", "conv2", "fc", "bn", "act", "layer1", "layer2", "layer10", "head")


class Block(nn.Module):
    """Runs its steps in order; each reads values that were made before it."""

    def __init__(self, children: dict[str, nn.Module], steps: list[Step]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for kind, name, reads in self.steps:
            function = getattr(self, name) if kind == "call" else FUNCTIONS[name]
            values.append(function(*(values[index] for index in reads)))
        return values[-1]


class Stage(Block):
    """A block of another class."""


def random_model(draw: random.Random, depth: int = 0) -> Block:
    """A model of up to three levels, with children that run twice, never, or under two names."""
    children: dict[str, nn.Module] = {}
    for name in draw.sample(NAMES, draw.randint(2, 4)):
        nested = depth < 2 and draw.random() < (0.5, 0.25)[depth]
        children[name] = random_model(draw, depth + 1) if nested else draw.choice(list(LEAVES.values()))()
    if draw.random() < 0.15:
        children["twin"] = draw.choice(list(children.values()))
    return draw.choice([Block, Stage])(children, _steps(draw, list(children)))


def _steps(draw: random.Random, names: list[str]) -> list[Step]:
    called = [name for name in names if draw.random() < 0.93] or names[:1]
    called += [draw.choice(called) for _ in range(draw.random() < 0.3)]
    steps: list[Step] = []
    for name in called:
        read = len(steps) if draw.random() < 0.85 else draw.randint(0, len(steps))
        steps.append(("call", name, (read,)))
        while draw.random() < 0.55:
            function = draw.choice(["relu", "add", *FUNCTIONS])
            last, other = len(steps), draw.randint(0, len(steps))
            steps.append(("function", function, (last, other) if function in OF_TWO else (last,)))
    return steps
