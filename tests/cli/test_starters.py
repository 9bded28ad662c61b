"""`init` on models that nobody wrote it for: what it writes validates, plans and calibrates as it is."""

import re

import pytest

HUGGING_FACE = """
from dataclasses import dataclass, field
import torch
from torch import nn


@dataclass
class Head:
    size: int = 3


@dataclass
class Config:
    hidden: int = 8
    head: Head = field(default_factory=Head)


@dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention = nn.ModuleDict({"self": nn.Linear(config.hidden, config.hidden)})
        self.output = nn.Linear(config.hidden, config.hidden)

    def forward(self, x, mask):
        return self.output(torch.relu(self.attention["self"](x) * mask[..., None])) + x


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(10, config.hidden)
        self.layer = nn.ModuleList(Layer(config) for _ in range(2))
        self.classifier = nn.Linear(config.hidden, config.head.size)

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        x = self.embeddings(input_ids)
        for layer in self.layer:
            x = layer(x, attention_mask)
        logits = self.classifier(x.mean(1))
        return Output(None if labels is None else nn.functional.cross_entropy(logits, labels), logits)


def build_model():
    return Model(Config())


def calib_data():
    ids, mask = torch.randint(0, 10, (2, 5)), torch.ones(2, 5)
    return [{"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1])}] * 2
"""
TIMM = """
from collections import OrderedDict
import torch
from torch import nn


def stem(before, after):
    parts = [("0", nn.Conv2d(before, after, 3, bias=False)), ("bn1", nn.BatchNorm2d(after))]
    return nn.Sequential(OrderedDict([*parts, ("act1", nn.SiLU(inplace=True))]))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.conv_reduce = nn.Conv2d(width, 2, 1)
        self.conv_expand = nn.Conv2d(2, width, 1)
        self.gate = nn.Sigmoid()
        self.drop_path = nn.Identity()

    def forward(self, x):
        y = self.conv_dw(x)
        squeezed = torch.relu(self.conv_reduce(y.mean((2, 3), keepdim=True)))
        return x + self.drop_path(y * self.gate(self.conv_expand(squeezed)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_stem = stem(3, 4)
        self.blocks = nn.Sequential(nn.Sequential(Block(4), Block(4)), nn.Sequential(Block(4)))
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4, 5)

    def forward(self, x):
        return self.classifier(self.global_pool(self.blocks(self.conv_stem(x))).flatten(1))


def build_model():
    return Net()


def calib_data():
    return [(torch.rand(2, 3, 8, 8), torch.zeros(2))] * 2
"""
PLAIN = """
import torch
from torch import nn


class Net(nn.Module):
    {body}


def build_model():
    return Net()


def calib_data():
    return [torch.rand(2, 3)] * 2
"""
WITHOUT_PARAMETERS = PLAIN.format(body="forward = lambda self, x: torch.relu(x) + 1")
ODD_NAMES = PLAIN.format(
    body=r"""
    def __init__(self):
        super().__init__()
        for name in ("a-b", "größe", "x y", "01", "true", "{c}", "*", "a:b", "#z", "'q'", "re:x", "\u202ey"):
            self.add_module(name, nn.Linear(3, 3))

    def forward(self, x):
        for module in self.children():
            x = torch.relu(module(x))
        return x
"""
)
MODELS = {
    "Hugging Face": HUGGING_FACE,
    "timm": TIMM,
    "no parameters": WITHOUT_PARAMETERS,
    "odd names": ODD_NAMES,
    "one layer": PLAIN.format(body="pass").replace("return Net()", "return nn.Linear(3, 3)"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_starter_validates_plans_and_calibrates_as_it_is(name, project):
    (project.path / "other.py").write_text(MODELS[name])
    assert project.run("init", "other.py", "-o", "other.yaml").code == 0
    checked = project.run("validate", "other.yaml", "--model", "other.py", "--strict")
    assert (checked.code, checked.out, checked.err) == (0, "other.yaml: ok\n", "")
    for command in (
        ["plan", "other.py", "other.yaml"],
        ["calib", "other.py", "other.yaml", "-o", "run", "-q"],
    ):
        done = project.run(*command)
        assert done.code == 0, done.err
    assert "run/result.json" in project.names()


@pytest.mark.parametrize("name", ["Hugging Face", "timm", "odd names"])
def test_every_comment_of_a_starter_is_a_rule(name, project):
    (project.path / "other.py").write_text(MODELS[name])
    lines = project.run("init", "other.py").out.split("\n")
    start = next(number for number, line in enumerate(lines) if "  module_name:" in line.replace("# ", " "))
    rules = [re.sub("^ +(# +)?", "    ", line) for line in lines[start + 1 : lines.index("", start)]]
    text = "version: 1\nqconfig:\n  global: w4a4\n  module_name:\n" + "\n".join(rules) + "\n"
    project.write("all.yaml", text)
    done = project.run("validate", "all.yaml", "--model", "other.py", "--strict")
    assert (done.code, done.err, len(rules) > 2) == (0, "", True), text
