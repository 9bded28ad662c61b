"""Forwards that look at the modules they are made of, and find what they came with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quantcfg.errors import PrepareError
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig

RULES = {"": get_default_qconfig()}
BATCH = torch.linspace(-1, 1, 32).reshape(4, 8)


def _number_applied_to(module: nn.Module) -> int:
    found: list[nn.Module] = []
    module.apply(found.append)
    return len(found)


QUESTIONS: dict[str, Callable[[nn.Module], float]] = {
    "state_dict": lambda module: sum(float(tensor.abs().sum()) for tensor in module.state_dict().values()),
    "state_dict of a layer": lambda module: len(module.first.state_dict(prefix="layer.")),
    "state_dict with parameters": lambda module: len(module.state_dict(keep_vars=True)),
    "parameters": lambda module: sum(parameter.numel() for parameter in module.parameters()),
    "buffers": lambda module: sum(len(name) for name, _ in module.named_buffers()),
    "modules": lambda module: sum(len(name) for name, _ in module.named_modules()),
    "children": lambda module: len(list(module.children())),
    "children of a layer": lambda module: len(list(module.first.children())),
    "apply": _number_applied_to,
}


class Curious(nn.Module):
    """Adds the answer to a question about itself to what it returns."""

    def __init__(self, question: Callable[[nn.Module], float]) -> None:
        super().__init__()
        self.question = question
        self.first = nn.Linear(8, 8)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x) + x) + self.question(self)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_forward_finds_what_it_came_with(question: str) -> None:
    model = Curious(QUESTIONS[question]).eval()
    prepared = prepare(model, RULES, example_inputs=BATCH)

    for state in (FakeQuantState.CALIBRATION, FakeQuantState.FLOAT):
        set_fake_quantize(prepared, state)
        assert torch.equal(prepared(BATCH), model(BATCH))
    assert len(prepared.state_dict()) > len(model.state_dict())


class InTurn(nn.Module):
    """Calls all that there is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for module in self._modules.values():
            x = module(x) + 1.0
        return x - 1.0 * (len(self._modules) - 2)


class Momentum(nn.Module):
    """Copies one of its parts into another at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.copied = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.copied.load_state_dict(self.encoder.state_dict())
        return self.encoder(x) - 2.0 * self.copied(2.0 * x)


def test_a_forward_that_calls_all_modules_calls_no_quantizer() -> None:
    model = InTurn().eval()
    prepared = prepare(model, RULES, example_inputs=BATCH)

    torch.testing.assert_close(prepared(BATCH), model(BATCH), rtol=0, atol=1e-6)


def test_a_forward_that_copies_weights_leaves_the_quantizers_alone() -> None:
    model = Momentum().eval()
    prepared = prepare(model, RULES, example_inputs=BATCH)
    with calibrating(prepared):
        prepared(BATCH)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    before = {name: module.qparams().scale.clone() for name, module in fake_quants(prepared).items()}

    prepared(BATCH)

    assert before["encoder.output"] != before["copied.output"]
    assert all(torch.equal(m.qparams().scale, before[name]) for name, m in fake_quants(prepared).items())


def test_symbolic_tracing_is_refused() -> None:
    prepared = prepare(Curious(lambda module: 0.0), RULES, example_inputs=BATCH)

    with pytest.raises(PrepareError) as caught:
        torch.fx.symbolic_trace(prepared)

    assert str(caught.value) == (
        "a prepared model cannot be traced symbolically: what it does between its layers would stay in float"
    )
    assert caught.value.hint == "torch.export.export sees all that it does; or trace the float model"
