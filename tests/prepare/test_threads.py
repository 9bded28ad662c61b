"""Several threads: one prepared model that all of them call, and forwards that start some of their own."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from quantcfg.errors import QuantcfgWarning
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, plan_of, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig

RULES = {"": get_default_qconfig(activation_observer="percentile")}
BATCHES = [torch.randn(16, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_that_calibrate_one_model_lose_no_batch() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    alone, together = (prepare(model, RULES, example_inputs=BATCHES[0]) for _ in range(2))
    with calibrating(alone):
        for batch in BATCHES:
            alone(batch)
    with calibrating(together), ThreadPoolExecutor(4) as pool:
        list(pool.map(together, BATCHES))

    for name, module in fake_quants(alone).items():
        other = fake_quants(together)[name]
        torch.testing.assert_close(other.qparams(), module.qparams(), rtol=0, atol=0, msg=name)


class Branches(nn.Module):
    """Runs its branches, and a layer that they share, in a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4))
        self.shared, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda branch: self.shared(branch(x)), self.branches))
        return self.head(torch.cat(found).unflatten(0, (4, -1)).sum(0))


def prepared_branches() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Branches().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantcfgWarning)
        return model, prepare(model, RULES, example_inputs=BATCHES[0])


def test_what_runs_in_threads_of_the_forward_is_recorded_and_quantized() -> None:
    model, prepared = prepared_branches()
    assert torch.equal(prepared(BATCHES[0]), model(BATCHES[0]))
    with calibrating(prepared):
        for batch in BATCHES:
            prepared(batch)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    names = {row.name for row in plan_of(prepared).rows if row.role in ("quantized", "fused")}
    assert names >= {"shared", "head", "sum_0", *(f"branches.{i}.{j}" for i in range(4) for j in range(2))}
    expected, actual = model(BATCHES[1]), prepared(BATCHES[1])
    assert torch.cosine_similarity(actual.flatten(), expected.flatten(), dim=0) > 0.999
    torch.testing.assert_close(prepared(BATCHES[1]), actual, rtol=0, atol=0)


def test_a_forward_that_starts_threads_is_told_what_is_not_seen_there() -> None:
    model = Branches()
    model.branches = model.branches[:1]
    model.forward = lambda x: ThreadPoolExecutor(1).submit(model.branches[0], x).result()

    with pytest.warns(QuantcfgWarning) as caught:
        prepare(model, RULES, forward=lambda prepared: prepared(BATCHES[0]))

    assert str(caught[0].message) == (
        "'branches.0' runs in a thread that the forward starts: what is computed there outside of modules "
        "stays in float and is not in the plan; what shall be quantized goes into modules"
    )
