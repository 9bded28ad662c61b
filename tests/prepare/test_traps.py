"""Small models that write where others read, hide what they compute, or compute something else next time.

The oracle is 16 bits: a quantizer in the right place changes almost nothing, one that loses a write, or that
takes a copy for the tensor itself, changes everything.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantcfg.errors import QuantcfgWarning
from quantcfg.preparation.intercept import interceptor_of
from quantcfg.preparation.places import Places
from quantcfg.preparation.plan import OpRow
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, plan_of, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig

INT16 = get_default_qconfig(activation_qkwargs={"dtype": "qint16"}, weight_qkwargs={"dtype": "qint16"})
BATCH = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
TRAPS: dict[str, Callable[[], nn.Module]] = {}


class Trap(nn.Module):
    """Two linear layers, a matrix and a vector around a forward that a test brings."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.matrix = nn.Parameter(torch.randn(8, 8) / 3)
        self.vector = nn.Parameter(torch.randn(8))
        self.run = run

    def forward(self, x: Tensor, **options: Any) -> Any:
        return self.run(self, x, **options)


def trap(run: Callable[..., Any]) -> Callable[..., Any]:
    TRAPS[run.__name__] = lambda: Trap(run)
    return run


@trap
def result_of_an_in_place_op_discarded(m: Trap, x: Tensor) -> Tensor:
    y = torch.asinh(m.a(x))  # in float: where it is written into, it meets a quantizer first
    y.add_(m.vector)
    y.mul_(2)
    return m.b(y)


@trap
def results_of_in_place_ops_on_one_another_discarded(m: Trap, x: Tensor) -> Tensor:
    y = m.a(x)
    y.mul_(m.vector).add_(0.5).clamp_(max=2).sub_(m.vector)
    y[y < 0] = 0
    return m.b(y)


@trap
def result_that_autograd_keeps_and_that_lies_in_a_view(m: Trap, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :4].sigmoid_()
    return m.b(y)


@trap
def written_through_a_view(m: Trap, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :4].add_(1.0)
    return m.b(y)


@trap
def read_through_an_older_view(m: Trap, x: Tensor) -> Tensor:
    y = m.a(x)
    view = y.view(-1, 2, 4)
    y += m.vector
    return m.b(view.reshape(-1, 8))


@trap
def assembled_in_empty_memory(m: Trap, x: Tensor) -> Tensor:
    y = x.new_empty(len(x), 8)
    y[:, :4].copy_(m.a(x)[:, :4])
    y[:, 4:] = x[:, 4:]
    return m.b(y)


@trap
def assembled_by_mask(m: Trap, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    chosen = x[:, 0] > 0
    y[chosen] = m.a(x[chosen])
    y[~chosen] = m.b(x[~chosen])
    return m.b(y)


@trap
def activated_in_place_and_read_twice(m: Trap, x: Tensor) -> Tensor:
    y = m.a(x)
    F.relu(y, inplace=True)
    return m.b(y) + y


@trap
def scattered(m: Trap, x: Tensor) -> Tensor:
    values, where = m.a(x).topk(3, -1)
    y = torch.zeros_like(x).scatter_(-1, where, values)
    y = y.index_add(0, torch.tensor([0, 2]), x[:2]).index_copy(1, torch.tensor([0]), x[:, :1])
    return m.b(y.masked_scatter(y > 1, x))


@trap
def under_vmap(m: Trap, x: Tensor) -> Tensor:
    return m.b(torch.func.vmap(lambda row: m.a(row) * 2 + row.sum())(x))


@trap
def a_chain_of_matrices(m: Trap, x: Tensor) -> Tensor:
    return torch.linalg.multi_dot([m.a(x), m.matrix, m.matrix.t(), m.matrix])


@trap
def overloads_called_by_name(m: Trap, x: Tensor) -> Tensor:
    y = torch.ops.aten.linear.default(m.a(x), m.matrix)
    return m.b(torch.ops.aten.gelu(y))


@trap
def sparse_product(m: Trap, x: Tensor) -> Tensor:
    return m.b(torch.sparse.mm(torch.eye(len(x)).to_sparse(), m.a(x)))


@trap
def dunders(m: Trap, x: Tensor) -> Tensor:
    return m.a(x).__matmul__(m.matrix).__add__(1).__radd__(x)


@trap
def slices_of_a_weight(m: Trap, x: Tensor) -> Tensor:
    return F.linear(x, m.matrix[:4], m.vector[:4]) + F.linear(m.a(x), m.matrix[4:])


@trap
def a_generator(m: Trap, x: Tensor) -> Tensor:
    def parts() -> Iterator[Tensor]:
        yield m.a(x)
        yield m.b(x)

    return sum(parts(), torch.zeros(8))


@pytest.fixture(params=TRAPS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return TRAPS[request.param]().eval()


def calibrated(model: nn.Module, **options: Any) -> nn.Module:
    prepared = prepare(model, {"": INT16}, example_inputs=(BATCH.clone(),), **options)
    with calibrating(prepared), torch.no_grad():
        prepared(BATCH.clone())
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    return prepared


def rows(prepared: nn.Module) -> dict[str, OpRow]:
    return {row.name: row for row in plan_of(prepared).rows}


def test_nothing_that_is_written_gets_lost(model: nn.Module) -> None:
    expected = model(BATCH.clone())
    prepared = calibrated(model)
    actual = prepared(BATCH.clone())
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-3)
    assert torch.equal(prepared(BATCH.clone()), expected)


def test_every_gradient_of_float_is_there(model: nn.Module) -> None:
    trained = copy.deepcopy(model).train()
    prepared = calibrated(model).train()
    set_fake_quantize(prepared, FakeQuantState.QAT)
    for module in (trained, prepared):
        module(BATCH.clone()).square().mean().backward()

    found = dict(prepared.named_parameters())
    for name, parameter in trained.named_parameters():
        if parameter.grad is not None:
            gradient = found[name].grad  # 0 where a value is the largest of its range, as for every clip
            assert F.cosine_similarity(gradient.flatten(), parameter.grad.flatten(), dim=0) > 0.7


def test_two_preparations_agree(model: nn.Module) -> None:
    first, second = (calibrated(model) for _ in range(2))

    assert first.state_dict().keys() == second.state_dict().keys()
    second.load_state_dict(first.state_dict())


def test_an_out_argument_is_written_to() -> None:
    def run(m: Trap, x: Tensor) -> Tensor:
        y, into = m.a(x), torch.empty(len(x), 8)
        torch.add(y.detach(), x, out=into)
        return m.b(into)

    torch.manual_seed(0)
    model = Trap(run).eval()
    with torch.no_grad():
        torch.testing.assert_close(calibrated(model)(BATCH), model(BATCH), rtol=2e-3, atol=2e-3)


def test_what_an_unseen_part_makes_is_quantized_again() -> None:
    with warnings.catch_warnings(action="ignore"):  # some torch calls it deprecated; models hold such modules
        script = torch.jit.trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), BATCH)
    model = Trap(lambda m, x: m.b(m.script(m.a(x))))
    model.script = script
    prepared = calibrated(model)

    found = rows(prepared)
    assert found["script.script_0"].reason == "TorchScript: its ops cannot be seen"
    assert found["b"].inputs == ("script.script_0: qint16",)
    assert plan_of(prepared).never_run == ()
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in prepared.parameters())


def test_a_write_reaches_no_other_tensor_even_where_none_has_an_address() -> None:
    def run(m: Trap, x: Tensor) -> Tensor:
        y = m.a(x)
        ones = torch.zeros_like(y)
        ones += 1
        return m.b(y) * ones

    model = Trap(run)
    on_meta = prepare(copy.deepcopy(model).to("meta"), {"": INT16}, example_inputs=(BATCH.to("meta"),))
    assert plan_of(on_meta).rows == plan_of(prepare(model, {"": INT16}, example_inputs=(BATCH,))).rows


def test_ops_under_vmap_are_float_with_the_reason() -> None:
    found = rows(calibrated(TRAPS["under_vmap"]()))

    assert found["a"].reason.startswith("runs under torch.func")
    assert found["b"].role == "quantized"


def test_a_longer_loop_uses_the_last_quantizer() -> None:
    def run(m: Trap, x: Tensor, steps: int = 2) -> Tensor:
        for _ in range(steps):
            x = x + torch.tanh(x @ m.matrix)
        return x

    prepared = calibrated(Trap(run))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in (0, 1, 5):
            output = prepared(BATCH, steps=steps)
            assert output.shape == BATCH.shape
    last = fake_quants(prepared)["add_1.output"]
    assert torch.equal(output, last(output))  # on the grid of the last addition


class Delegating(nn.Module):
    """Answers for every name: with what its inner module has, or else with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return self if name.startswith("fake") else getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.inner(x), self.weight) + x


def test_a_module_that_answers_for_every_name_has_quantizers_of_its_own() -> None:
    model = Delegating().eval()
    prepared = calibrated(model)

    assert "inner.fake_quants.weight.scale" in prepared.state_dict()
    assert any(name.startswith("fake_quants.") for name in prepared.state_dict())
    torch.testing.assert_close(prepared(BATCH), model(BATCH), rtol=2e-3, atol=2e-3)


def test_another_branch_is_told_once() -> None:
    def run(m: Trap, x: Tensor, other: bool = False) -> Tensor:
        y = m.a(x)
        return F.gelu(y) @ m.matrix if other else torch.tanh(y)

    prepared = calibrated(Trap(run))
    with pytest.warns(QuantcfgWarning, match="'gelu' runs in the model now where it did not"):
        prepared(BATCH, other=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(BATCH, other=True)
        prepared(BATCH)


def test_a_branch_with_the_same_ops_gets_no_quantizers_of_the_recorded_one() -> None:
    def run(m: Trap, x: Tensor, big: bool = False) -> Tensor:
        y = m.a(x) * 1000 if big else m.a(x) * 1  # one line, two places
        return m.b(y) * m.vector

    prepared = calibrated(Trap(run))
    with pytest.warns(QuantcfgWarning, match="'mul' runs in the model now where it did not"):
        large = prepared(BATCH, big=True)
    assert (large - prepared(BATCH)).abs().max() > 1e-3 * large.abs().max()


class DropPath(nn.Module):
    """Larsson et al. 2016, arXiv 1605.07648: in training some samples lose a branch; else nothing happens."""

    is_on = False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training or self.is_on):
            return x
        keep = torch.rand(len(x), 1).add_(0.8).floor_()
        return x.div(0.8) * keep


def test_what_only_drops_paths_in_training_is_no_stranger() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.drop = nn.Linear(8, 8), DropPath()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.drop(self.layer(x))

    prepared = prepare(Block().eval(), {"": INT16}, example_inputs=(BATCH,), stage="qat")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared.train()(BATCH).sum().backward()
        prepared.eval()(BATCH)

    prepared.drop.is_on = True
    with pytest.warns(QuantcfgWarning, match="'add' runs in drop now where it did not"):
        prepared(BATCH)


class Scored(nn.Module):
    """Computes its losses inside its forward, before and between what it does in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        y = torch.tanh(self.layer(x))
        losses = self.losses(y, target) if self.training and target is not None else None
        y = self.out(y * 0.5 + x)
        return (y, losses) if self.training else torch.sigmoid(y * 2.0 - 1.0)

    def losses(self, y: Tensor, target: Tensor) -> dict[str, Tensor]:
        far = (y - target * 1e4) * 3.0
        return {"distance": far.abs().mean() + 1e6, "angle": torch.sigmoid(far * 1e-9).sum() + 1e5}


@pytest.mark.parametrize("copied", [False, True])
def test_losses_that_only_training_computes_are_exact(copied: bool) -> None:
    model = Scored()
    prepared = prepare(model.eval(), {"": INT16}, example_inputs=(BATCH,), stage="qat")
    with calibrating(prepared):
        prepared(BATCH)
    prepared = copy.deepcopy(prepared) if copied else prepared
    with pytest.warns(QuantcfgWarning, match="runs in the model now where it did not"):
        y, losses = prepared.train()(BATCH, -BATCH)

    hidden = torch.tanh(model.layer(BATCH))
    torch.testing.assert_close(losses, model.losses(hidden, -BATCH), rtol=1e-4, atol=0)
    output = fake_quants(prepared)["out.output"]
    output.observing = False
    assert torch.equal(y, output(y))


def test_where_the_source_may_be_another_ops_are_known_by_their_number() -> None:
    prepared = calibrated(Scored().eval())
    read = pickle.loads(pickle.dumps(prepared))
    assert torch.equal(read(BATCH), prepared(BATCH))
    assert not any(places.ordinals for places in read_places(read))


def read_places(prepared: nn.Module) -> Iterator[Places]:
    interceptor = interceptor_of(prepared)
    assert interceptor is not None
    return (table.places for tables in interceptor.handler.tables.values() for table in tables if table)


def test_integers_that_only_training_counts_are_not_told() -> None:
    model = nn.Sequential(nn.GELU(), nn.BatchNorm1d(8), nn.Linear(8, 8))
    prepared = prepare(model, {"": INT16}, example_inputs=(BATCH,), stage="qat").train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(BATCH)
