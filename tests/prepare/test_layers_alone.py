"""Layers that are one torch function run without being looked into, and nothing shows it but the time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantcfg.preparation import run
from quantcfg.preparation.intercept import interceptor_of
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, set_fake_quantize
from quantcfg.preparation.tensors import tensors_in
from quantcfg.qconfig import get_default_qconfig
from tests.prepare.models import CASES

GLOBAL = {"": get_default_qconfig()}
IMAGES, ROWS = torch.randn(2, 4, 8, 8), torch.randn(3, 8)
EXAMPLES: dict[type[nn.Module], tuple[nn.Module, Tensor]] = {
    nn.Linear: (nn.Linear(8, 4), ROWS),
    nn.Conv1d: (nn.Conv1d(4, 4, 3), IMAGES[..., 0]),
    nn.Conv2d: (nn.Conv2d(4, 4, 3), IMAGES),
    nn.Conv3d: (nn.Conv3d(2, 4, 3), IMAGES),
    nn.ConvTranspose1d: (nn.ConvTranspose1d(4, 4, 3), IMAGES[..., 0]),
    nn.ConvTranspose2d: (nn.ConvTranspose2d(4, 4, 3), IMAGES),
    nn.ConvTranspose3d: (nn.ConvTranspose3d(2, 4, 3), IMAGES),
    nn.BatchNorm1d: (nn.BatchNorm1d(8), ROWS),
    nn.BatchNorm2d: (nn.BatchNorm2d(4), IMAGES),
    nn.BatchNorm3d: (nn.BatchNorm3d(2), IMAGES[None]),
    nn.LayerNorm: (nn.LayerNorm(8), ROWS),
    nn.RMSNorm: (nn.RMSNorm(8), ROWS),
    nn.GroupNorm: (nn.GroupNorm(2, 4), IMAGES),
    nn.Softmax: (nn.Softmax(-1), ROWS),
    nn.AvgPool2d: (nn.AvgPool2d(2), IMAGES),
    nn.AdaptiveAvgPool2d: (nn.AdaptiveAvgPool2d(1), IMAGES),
    nn.Embedding: (nn.Embedding(8, 4), torch.arange(8)),
}


@contextmanager
def op_by_op(patch: pytest.MonkeyPatch) -> Iterator[None]:
    with patch.context() as local:
        local.setattr(run, "LAYERS", frozenset())
        yield


def calibrated(model: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    prepared = prepare(model.eval(), GLOBAL, example_inputs=inputs)
    with calibrating(prepared), torch.no_grad():
        prepared(*inputs), prepared(*inputs)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    return prepared


def is_layer(prepared: nn.Module, path: str) -> bool:
    interceptor = interceptor_of(prepared)
    assert interceptor is not None
    return interceptor.handler.tables[path][0].only is not None


def assert_same(one: nn.Module, other: nn.Module, inputs: tuple[Any, ...]) -> None:
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
    found, expected = (list(tensors_in(model(*inputs))) for model in (one, other))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", sorted(run.LAYERS, key=lambda kind: kind.__name__))
def test_every_one_of_them_is_one_function_of_its_argument(kind, monkeypatch):
    layer, x = EXAMPLES[kind] if kind in EXAMPLES else (kind(), ROWS)
    first = nn.Linear(8, 8) if kind in {nn.ReLU, nn.ReLU6} else nn.Identity()  # those two end a chain
    model = nn.Sequential(first, layer)
    alone = calibrated(model, (x,))
    with op_by_op(monkeypatch):
        other = calibrated(model, (x,))
    assert is_layer(alone, "1") and not is_layer(other, "1")
    assert_same(alone, other, (x,))


@pytest.mark.parametrize("name", CASES)
def test_whole_models_have_the_same_bits(name, monkeypatch):
    make, inputs = CASES[name]
    torch.manual_seed(0)
    model, batch = make(), inputs()
    with op_by_op(monkeypatch):
        other = calibrated(model, batch)
    assert_same(calibrated(model, batch), other, batch)


class Names(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append((func.__name__, args[0]))
        return func(*args, **(kwargs or {}))


class Watched(nn.Module):
    """A model that looks at its own functions."""

    def __init__(self, mode: Names) -> None:
        super().__init__()
        self.layer, self.act, self.mode = nn.Linear(8, 8), nn.Tanh(), mode

    def forward(self, x: Tensor) -> Tensor:
        with self.mode:
            return self.act(input=self.layer(x))


def test_a_mode_of_the_model_sees_them(monkeypatch):
    model = Watched(Names())
    prepared = calibrated(model, (ROWS,))
    prepared.mode.seen.clear()
    y = prepared(ROWS)
    assert [name for name, _ in prepared.mode.seen] == ["linear", "tanh"]
    with op_by_op(monkeypatch):
        assert torch.equal(y, calibrated(model, (ROWS,))(ROWS))


def test_a_mode_around_the_model_sees_quantized_arguments():
    prepared, mode = calibrated(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), (ROWS,)), Names()
    with mode:
        prepared(ROWS)
    quantizers = fake_quants(prepared)
    tanh = next(x for name, x in mode.seen if name == "tanh")
    assert torch.equal(tanh, quantizers["0.output"](tanh))
