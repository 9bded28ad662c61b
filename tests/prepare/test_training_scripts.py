"""What training scripts do with any model, and with a prepared one: average it, penalize its gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from quantcfg.errors import QuantcfgWarning
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig

AFFINE = {"qscheme": "per_tensor_affine"}
SCHEMES = {
    "symmetric": get_default_qconfig(),
    "affine": get_default_qconfig(activation_qkwargs=AFFINE),
    "histogram": get_default_qconfig(activation_observer="mse", activation_qkwargs=AFFINE),
    "learned": get_default_qconfig("lsq", "lsq", activation_qkwargs=AFFINE),
}
DECAY = 0.9


def ready(qconfig: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model(batch(0.0))
    prepared = prepare(model, {"": qconfig}, example_inputs=batch(0.0), stage="qat", bn="keep")
    with calibrating(prepared.eval()):
        prepared(batch(-4.0))
    return prepared.train()


def batch(shift: float) -> Tensor:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(1)) + shift


class OfTheState:
    """The moving average of everything in the state dict, in the order it is in."""

    def __init__(self, model: nn.Module) -> None:
        self.module = copy.deepcopy(model).eval()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        states = self.module.state_dict().values(), model.state_dict().values()
        for average, value in zip(*states, strict=True):
            average.copy_(DECAY * average + (1.0 - DECAY) * value)


def _moving(history: Tensor) -> Tensor:
    average = history[0]
    for value in history[1:]:
        average = DECAY * average + (1.0 - DECAY) * value
    return average


Averaged = tuple[Callable[[nn.Module], Any], Callable[[Tensor], Tensor]]
AVERAGES: dict[str, Averaged] = {  # and what they make of the values of a buffer, the first before training
    "mean": (lambda model: AveragedModel(model, use_buffers=True), lambda history: history[1:].mean(0)),
    "moving": (
        lambda model: AveragedModel(model, avg_fn=get_ema_avg_fn(DECAY), use_buffers=True),
        lambda history: _moving(history[1:]),
    ),
    "moving at once": (
        lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True),
        lambda history: _moving(history[1:]),
    ),
    "of the state": (OfTheState, _moving),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_over_training_has_the_average_of_the_qparams(kind: str, scheme: str) -> None:
    prepared, (averaged, expected) = ready(SCHEMES[scheme]), AVERAGES[kind]
    average, optimizer = averaged(prepared), torch.optim.SGD(prepared.parameters(), lr=1e-6)
    history = [qparams_of(prepared)]
    for step in range(25):
        prepared(batch(step / 3 - 4.0)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(prepared)
        history.append(qparams_of(prepared))
    set_fake_quantize(average.module, FakeQuantState.VALIDATION)

    for name, found in qparams_of(average.module).items():
        scale, zero_point = expected(torch.stack([qparams[name] for qparams in history]))
        torch.testing.assert_close(found[0], scale, rtol=1e-4, atol=0)
        assert (found[1] - zero_point).abs().max() < 0.51, name
    assert average.module.eval()(batch(4.0)).isfinite().all()


def qparams_of(model: nn.Module) -> dict[str, Tensor]:
    """Scale and zero point of each quantizer, ``(2, channels)``."""
    return {name: torch.stack([*module.qparams()]).double() for name, module in fake_quants(model).items()}


def test_an_average_with_copied_buffers_has_the_qparams_of_the_last_step() -> None:
    prepared = ready(SCHEMES["affine"])
    average = AveragedModel(prepared)
    for step in range(3):
        prepared(batch(step - 1.0))
        average.update_parameters(prepared)

    assert all(map(torch.equal, qparams_of(average).values(), qparams_of(prepared).values()))


def test_of_an_average_that_began_before_the_quantizers_did_nothing_is_quantized() -> None:
    torch.manual_seed(0)
    prepared = prepare(nn.Linear(6, 3), {"": SCHEMES["affine"]}, example_inputs=batch(0.0), stage="qat")
    average = OfTheState(prepared)
    for _ in range(3):
        prepared(batch(0.0))
        average.update_parameters(prepared)

    with pytest.warns(QuantcfgWarning, match="3 of 3 quantizers have seen nothing yet and stay in float"):
        average.module(batch(0.0))
    for _ in range(60):
        average.update_parameters(prepared)
    set_fake_quantize(average.module, FakeQuantState.VALIDATION)
    assert torch.cosine_similarity(average.module(batch(0.0)), prepared(batch(0.0))).min() > 0.99


class Critic(nn.Module):
    """What a GAN with a gradient penalty trains: layers, an attention, a norm and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.keys, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.leaky_relu(self.first(x), 0.2)
        weights = (self.keys(y) @ y.T).softmax(-1)
        return self.last(self.norm(weights @ y + x))


def penalized(critic: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    critic.zero_grad()
    (slope.norm(2, dim=-1) - 1.0).square().mean().backward()
    return {name: p.grad.clone() for name, p in critic.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kinds", [("fake_quant", "fake_quant"), ("lsq", "lsq"), ("pact", "fake_quant")])
def test_a_penalty_on_gradients_trains_what_it_trains_in_float(kinds: tuple[str, str]) -> None:
    torch.manual_seed(0)
    critic, x, wide = Critic(), torch.randn(8, 6), {"dtype": "qint16"}
    qconfig = get_default_qconfig(*kinds, activation_qkwargs=wide, weight_qkwargs=wide)
    prepared = prepare(critic, {"": qconfig}, example_inputs=x, stage="qat")
    with calibrating(prepared):
        prepared(2 * x)

    expected, actual = penalized(critic, x), penalized(prepared.train(), x)

    assert expected.keys() <= actual.keys()
    for name, gradient in expected.items():  # but for the greatest weights, which the grid may just clip
        similarity = torch.cosine_similarity(actual[name].flatten(), gradient.flatten(), dim=0)
        assert similarity > 0.9, name
