"""What only the logarithm is taken of: quotients of probabilities go from nothing to thousands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, plan_of, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig

GLOBAL = {"": get_default_qconfig()}
REASON = "only its logarithm counts: rounded before, what is small would be lost"


def _inverse(p: Tensor) -> Tensor:
    """As detectors write the inverse of a sigmoid."""
    p = p.clamp(0, 1)
    return torch.log(p.clamp(min=1e-5) / (1 - p).clamp(min=1e-5))


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "inverse": lambda x: _inverse(x.sigmoid()),
    "quotient": lambda x: torch.log((p := x.sigmoid()) / (1 - p)),
    "logit": lambda x: torch.logit(x.sigmoid(), 1e-5),
    "difference": lambda x: torch.log((p := x.sigmoid()) + 1e-6) - torch.log(1 - p + 1e-6),
    "softmax": lambda x: x.softmax(-1).log(),
    "complement": lambda x: torch.log2(1 - 0.999 * x.softmax(-1)[..., 1:]),
}


class Between(nn.Module):
    """Something between two layers, of which the first gives values between -10 and 10."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.way = way
        self.first, self.last = nn.Linear(16, 16), nn.LazyLinear(8)
        self.first.weight.data *= 3

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.way(self.first(x)))


def validated(model: nn.Module, x: Tensor) -> nn.Module:
    prepared = prepare(model, GLOBAL, example_inputs=x)
    with calibrating(prepared):
        prepared(x)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    return prepared


@pytest.mark.parametrize("way", WAYS)
def test_what_only_the_logarithm_is_taken_of_stays_float(way: str) -> None:
    torch.manual_seed(0)
    model, x = Between(WAYS[way]).eval(), 2 * torch.randn(64, 16)
    expected = model(x)
    prepared = validated(model, x)

    assert torch.cosine_similarity(prepared(x), expected, dim=-1).min() > 0.99
    assert {"first.output", "last.weight"} <= set(fake_quants(prepared))
    assert not any(name.startswith(("sigmoid", "softmax", "div", "rsub")) for name in fake_quants(prepared))


def test_what_is_read_by_others_too_is_on_a_grid() -> None:
    def way(x: Tensor) -> Tensor:
        p = x.sigmoid()
        return _inverse(p) + p

    torch.manual_seed(0)
    x = 2 * torch.randn(64, 16)
    model = Between(way)
    model(x)

    rows = {
        row.name: (row.role, row.reason) for row in plan_of(prepare(model, GLOBAL, example_inputs=x)).rows
    }
    assert rows["sigmoid_0"] == ("quantized", "")
    assert rows["div_0"] == ("float", REASON)
    assert rows["rsub_0"][0] == "float"
    assert rows["log_0"] == ("quantized", "")


class Bands(nn.Module):
    """The logarithms of the power in the bands of a spectrum, as most that listens to sound begins."""

    def __init__(self, kind: type[Tensor]) -> None:
        super().__init__()
        filters = torch.rand(129, 20, generator=torch.Generator().manual_seed(0))
        if kind is nn.Parameter:
            self.filters = nn.Parameter(filters)
        else:
            self.register_buffer("filters", filters)
        self.head = nn.Linear(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 256, window=torch.hann_window(256), return_complex=True)
        power = spectrum.abs().pow(2).transpose(1, 2)
        bands: Tensor = self.head(torch.log(power @ self.filters + 1e-8))
        return bands


def test_the_power_in_the_bands_of_a_spectrum_stays_float() -> None:
    times = torch.arange(4096) / 8000
    x = torch.stack([torch.sin(3000 * times) * torch.exp(-20 * times), 1e-3 * torch.sin(9000 * times)])
    model = Bands(Tensor)
    prepared = validated(model, x)
    rows = {row.name: row for row in plan_of(prepared).rows}
    assert {rows[name].reason for name in ("abs_0", "matmul_0", "add_0")} == {REASON}
    assert not rows["matmul_0"].inputs and rows["log_0"].role == "quantized"
    assert torch.cosine_similarity(prepared(x).flatten(), model(x).flatten(), dim=0) > 0.999


def test_a_learned_layer_before_a_logarithm_is_on_grids() -> None:
    rows = {row.name: row for row in plan_of(validated(Bands(nn.Parameter), torch.randn(2, 4096))).rows}
    assert rows["matmul_0"].weight is not None and rows["matmul_0"].role == "quantized"


def test_what_is_squared_for_a_root_is_on_a_grid() -> None:
    class Energy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x).pow(2).sum(-1).sqrt()

    rows = plan_of(prepare(Energy(), GLOBAL, example_inputs=torch.randn(4, 8))).rows
    assert rows[0].role == "quantized"
