"""Small models of kinds that nobody thought of, through every stage that a user takes a model through."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import (
    FakeQuantState,
    calibrating,
    fake_quants,
    plan_of,
    set_fake_quantize,
    state_of,
)
from quantcfg.preparation.tensors import tensors_in
from quantcfg.qconfig import get_default_qconfig

INT16 = get_default_qconfig(activation_qkwargs={"dtype": "qint16"}, weight_qkwargs={"dtype": "qint16"})
LEARNED = get_default_qconfig("lsq", "lsq")
STRANGERS: dict[str, type[nn.Module]] = {}


class Stranger(nn.Module):
    """Two linear layers; subclasses are collected, and say what they are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def __init_subclass__(cls) -> None:
        STRANGERS[cls.__name__] = cls

    def example(self) -> Any:
        return torch.randn(4, 8)


class ModuleMadeInForward(Stranger):
    def forward(self, x):
        return self.b(nn.GELU()(nn.LayerNorm(8)(self.a(x))))


class Scaled(nn.Module):
    def forward(self, x, *, scale):
        return x * scale


def _twice(module, args, kwargs):
    return (args[0] + 1,), {"scale": 2 * kwargs["scale"]}


def _squashed(module, args, output):
    return 2 * torch.tanh(output)


class HooksThatChangeWhatPasses(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.scaled = Scaled()
        self.scaled.register_forward_pre_hook(_twice, with_kwargs=True)
        self.a.register_forward_hook(_squashed)

    def forward(self, x):
        return self.b(self.scaled(self.a(x), scale=0.5))


class NestedTensor(Stranger):
    def forward(self, x):
        ragged = torch.nested.nested_tensor([x[0, :3], x[1, :5]], layout=torch.jagged)
        return self.b(self.a(x)) + torch.nested.to_padded_tensor(ragged * 2, 0.0).sum()


class SparseMatrices(Stranger):
    def forward(self, x):
        neighbours = torch.eye(4).roll(1, 0)
        y = torch.sparse.mm(neighbours.to_sparse(), self.a(x))
        return self.b(neighbours.to_sparse() @ y)


class Fourier(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(5, dtype=torch.cfloat) / 3)

    def forward(self, x):
        spectrum = torch.fft.rfft(self.a(x)) * self.filter
        return self.b(torch.fft.irfft(spectrum, n=8)) + spectrum.abs().mean(-1, keepdim=True)


class WritesIntoViewsOfViews(Stranger):
    def forward(self, x):
        y = self.a(x)
        blocks = y.view(4, 2, 4)
        blocks[:, 0].mul_(2)
        y[:, 1::2].add_(1.0)
        blocks.transpose(1, 2)[0] = 0.5
        return self.b(y)


class Tagged(Tensor):
    pass


class SubclassOfTensor(Stranger):
    def forward(self, x):
        x = x.as_subclass(Tagged)
        return self.b(torch.relu(self.a(x)) + x)


class OverModules(Stranger):
    def forward(self, x):
        return torch.vmap(lambda row: self.b(torch.relu(self.a(row))))(x)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return grad * 3 * ctx.saved_tensors[0].square()


class OwnFunction(Stranger):
    def forward(self, x):
        return self.b(Cube.apply(self.a(x)))


class BufferReplacedInForward(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        y = self.a(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        return self.b(y - self.mean)


class WeightsMadeByTheModel(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.maker, self.code = nn.Linear(3, 64), nn.Parameter(torch.randn(3))

    def forward(self, x):
        return F.linear(self.a(x), self.maker(self.code).view(8, 8))


class TiedThreeWays(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def example(self):
        return torch.randint(0, 11, (2, 5))

    def forward(self, ids):
        hidden = self.a(self.words(ids))
        return self.head(hidden) + hidden @ self.words.weight.t()


class SparseGradients(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8, sparse=True, max_norm=1.0)
        self.bag = nn.EmbeddingBag(11, 8, sparse=True, mode="sum")

    def example(self):
        return torch.randint(0, 11, (4, 6))

    def forward(self, ids):
        return self.a(self.words(ids).mean(1)) + self.b(self.bag(ids))


class OrderStatistics(Stranger):
    def forward(self, x):
        values, order = self.a(x).sort(dim=-1)
        return self.b(values - torch.quantile(values, 0.5, dim=1, keepdim=True)).gather(1, order)


class EinsumOfThree(Stranger):
    def forward(self, x):
        return torch.einsum("bi,ji,kj->bk", self.a(x), self.a.weight, self.b.weight)


class Result(NamedTuple):
    logits: Tensor
    nothing: None
    flag: bool


class NoneAmongOutputs(Stranger):
    def forward(self, x, scale=None):
        y = self.a(x)
        return Result(self.b(y if scale is None else y * scale), None, True)


class UnregisteredModules(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(8, 8).requires_grad_(False)]

    def forward(self, x):
        return self.b(self.hidden[0](self.a(x)))


class MixedDtypes(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = self.a.double(), self.b.bfloat16()

    def forward(self, x):
        return self.b(self.a(x.double()).bfloat16()).float()


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x):
        return checkpoint(self.layers, x, use_reentrant=False) + x


class NestedCheckpoints(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.b(checkpoint(self.inner, self.a(x), use_reentrant=False))


class WrappedParts(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.parallel = nn.DataParallel(nn.Linear(8, 8))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x):
        return self.normed(self.b(self.parallel(self.a(x))))


class StochasticDepth(Stranger):
    def forward(self, x):
        y = self.a(x)
        return y + self.b(y) * (0.0 if self.training and torch.rand(()).item() < 0.5 else 1.0)


class PackedSequences(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 4, batch_first=True, bidirectional=True)

    def example(self):
        return torch.randn(3, 5, 8)

    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(self.a(x), torch.tensor([5, 3, 2]), batch_first=True)
        return self.b(nn.utils.rnn.pad_packed_sequence(self.cells(packed)[0], batch_first=True)[0])


class CallsItself(Stranger):
    def forward(self, x, depth=2):
        x = torch.tanh(self.a(x))
        return self.b(x) if depth == 0 else self(x, depth - 1)


class CatchesItsErrors(Stranger):
    def forward(self, x):
        y = self.a(x)
        try:
            y = y.view(3, 3)
        except RuntimeError:
            y = y.view(4, 8)
        return self.b(y)


class SwitchesAutocastAndGradients(Stranger):
    def forward(self, x):
        with torch.no_grad():
            anchor = self.a(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.b(x)
        return y.float() + anchor


class CallsForwardsByHand(Stranger):
    def forward(self, x):
        doubled = {"weight": 2 * self.a.weight, "bias": self.a.bias}
        return type(self.b).forward(self.b, torch.func.functional_call(self.a, doubled, (x,)))


class Energies(Stranger):
    def forward(self, x):
        x = x.detach().requires_grad_()
        energies = self.b(torch.tanh(self.a(x)))
        return energies, torch.autograd.grad(energies.sum(), x, create_graph=True)[0]


@dataclass
class Batch:
    """A container that nobody told torch of, and in it a plain object."""

    first: Tensor
    rest: Any


class InputsInPlainObjects(Stranger):
    def example(self):
        return Batch(torch.randn(4, 8), SimpleNamespace(items={"more": [torch.randn(4, 8)]}))

    def forward(self, batch):
        total = self.a(batch.first) + batch.rest.items["more"][0]
        return SimpleNamespace(logits=self.b(total), hidden=Batch(total, None))


class ComputesWithArrays(Stranger):
    def forward(self, x):
        frame = torch.from_numpy(numpy.tanh(self.a(x).detach().numpy()))
        return self.b(frame) + self.a(torch.tensor(x.tolist()))


class MakesATableWithNumpy(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.linspace(0.99, 0.01, 4))

    def forward(self, x):
        table = torch.from_numpy(numpy.log(self.noise.numpy()))
        return self.b(self.a(x) + torch.sin(table)[:, None])


def _doubled_tanh(x: Tensor) -> Tensor:
    return torch.tanh(x) * 2


class CallsAFunctionInTorchScript(Stranger):
    with warnings.catch_warnings(action="ignore"):  # some torch calls it deprecated
        scripted = staticmethod(torch.jit.script(_doubled_tanh))

    def forward(self, x):
        return self.b(self.scripted(self.a(x))) * self.scripted(self.scripted(x))


class MakesItsOwnNoise(Stranger):
    def forward(self, x):
        noise = self.a(torch.randn(len(x), 8))
        return self.b(noise) + torch.empty(4, 8).normal_() * 0.1


class YieldsItsResults(Stranger):
    def forward(self, x):
        yield self.a(x)
        yield self.b(x * 2)


class OwnCall(Stranger):
    def __call__(self, x):
        return super().__call__(2 * x) + 1

    def forward(self, x):
        return self.b(self.a(x))


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    torch.manual_seed(1)
    result = model(example)
    return list(tensors_in(list(result) if isinstance(result, Iterator) else result))


def evaluated(model: nn.Module, example: Any) -> list[Tensor]:
    with torch.set_grad_enabled(isinstance(model, Energies)):
        return [tensor.detach() for tensor in outputs(model.eval(), example)]


def gradients(model: nn.Module, example: Any) -> dict[str, Tensor]:
    model.train().zero_grad()
    torch.autograd.backward(sum(t.float().square().mean() for t in outputs(model, example)))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=STRANGERS)
def stranger(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return STRANGERS[request.param]().eval()


def ready(model: nn.Module, qconfig: Any, stage: str = "calib") -> nn.Module:
    result = prepare(model, {"": qconfig}, example_inputs=(model.example(),), stage=stage)
    with calibrating(result):
        for _ in range(3):
            outputs(result, model.example())
    return result


def test_in_float_it_is_the_original_and_16_bits_change_almost_nothing(stranger: nn.Module) -> None:
    example = stranger.example()
    expected = evaluated(copy.deepcopy(stranger), example)
    prepared = prepare(stranger, {"": INT16}, example_inputs=(example,))
    with calibrating(prepared):
        outputs(prepared, example)

    set_fake_quantize(prepared, FakeQuantState.FLOAT)
    assert all(map(torch.equal, evaluated(prepared, example), expected))
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    for actual, wanted in zip(evaluated(prepared, example)[:1], expected, strict=False):
        torch.testing.assert_close(actual, wanted, rtol=0.01, atol=0.01 * float(wanted.abs().max()))
    assert fake_quants(prepared) or isinstance(stranger, OverModules)


@pytest.mark.filterwarnings("ignore:.*runs in the model now")
def test_a_script_that_knows_nothing_of_it_trains_and_saves_it(stranger: nn.Module) -> None:
    prepared = ready(stranger, LEARNED, "qat")
    example = stranger.example()
    wanted, found = gradients(copy.deepcopy(stranger), example), gradients(prepared, example)
    assert set(wanted) <= set(found)
    assert {n for n, g in wanted.items() if g.is_sparse} == {n for n, g in found.items() if g.is_sparse}
    assert all(grad.coalesce().values().isfinite().all() if grad.is_sparse else grad.isfinite().all()
               for grad in found.values())  # fmt: skip

    optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-3)
    for _ in range(3):
        gradients(prepared, example)
        optimizer.step()
    trained = evaluated(prepared, example)
    buffer = io.BytesIO()
    torch.save(prepared.state_dict(), buffer)
    buffer.seek(0)
    fresh = prepare(stranger, {"": LEARNED}, example_inputs=(example,), stage="qat")
    fresh.load_state_dict(torch.load(buffer))
    set_fake_quantize(fresh, state_of(prepared))
    for other in (fresh, copy.deepcopy(prepared)):
        assert all(map(torch.equal, evaluated(other, example), trained))


@pytest.mark.parametrize(
    ("kind", "op"),
    [
        (NestedTensor, "add_0"),
        (SparseMatrices, "b"),
        (SubclassOfTensor, "add_0"),
        (OwnFunction, "b"),
        (InputsInPlainObjects, "b"),
        (ComputesWithArrays, "add_0"),
        (CallsAFunctionInTorchScript, "b"),
        (MakesItsOwnNoise, "a"),
        (YieldsItsResults, "b"),
    ],
)
def test_what_leaves_the_dense_world_is_quantized_where_it_comes_back(
    kind: Callable[[], nn.Module], op: str
) -> None:
    model = kind()
    rows = plan_of(prepare(model, {"": INT16}, example_inputs=(model.example(),))).rows
    assert next(row for row in rows if row.name == op).role == "quantized"


def test_a_table_is_a_constant_though_arrays_have_a_part_in_it() -> None:
    model = MakesATableWithNumpy()
    rows = plan_of(prepare(model, {"": INT16}, example_inputs=(model.example(),))).rows
    made = {row.name: row.reason for row in rows if row.role == "float"}
    assert made == dict.fromkeys(("sin_0", "getitem_0"), "computed from parameters only")


def test_a_function_in_torchscript_is_one_op() -> None:
    model = CallsAFunctionInTorchScript()
    prepared = prepare(model, {"": INT16}, example_inputs=(model.example(),))
    scripts = [row for row in plan_of(prepared).rows if row.op == "script"]
    assert [row.name for row in scripts] == ["script_0", "script_1", "script_2"]
    assert {row.reason for row in scripts} == {"TorchScript: its ops cannot be seen"}


class Experts(nn.Module):
    """An expert that is sent nothing unless there are more than four rows."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())])

    def forward(self, x: Tensor) -> Tensor:
        y, late = torch.zeros_like(x), torch.arange(len(x)) >= 4
        for expert, chosen in zip(self.experts, (~late, late), strict=True):
            y[chosen] = expert(x[chosen])
        return y


class Finder(nn.Module):
    """What computes with the objects that it finds, of which there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        found = self.boxes(x)
        kept = found[found[:, 4] > 1e9]
        return (kept[:, :4] * 2 + 1).clamp(min=0)


def test_of_what_a_detector_does_not_find_nothing_is_asked() -> None:
    x = torch.randn(4, 8)
    prepared = prepare(Finder(), {"": INT16}, example_inputs=(x,))
    assert list(fake_quants(prepared)) == ["input.x", "boxes.weight", "boxes.output"]
    with calibrating(prepared):
        prepared(x)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    assert prepared(x).shape == (0, 4)


@pytest.mark.parametrize("rows", [0, 4])
def test_what_is_sent_nothing_at_first_is_quantized_as_if_it_had_been(rows: int) -> None:
    model, x = Experts(), torch.randn(8, 8)
    prepared = prepare(model, {"": INT16}, example_inputs=(x[:rows],))
    assert list(fake_quants(prepared)) == list(fake_quants(prepare(model, {"": INT16}, example_inputs=(x,))))

    with calibrating(prepared):
        prepared(x[:rows])
        prepared(x)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    torch.testing.assert_close(prepared(x), model(x), rtol=1e-3, atol=1e-3)
    assert prepared(x[:0]).shape == (0, 8)
