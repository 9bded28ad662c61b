"""The copy that `prepare` makes: it is the model, it has nothing of the original, and nothing ran on it."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantcfg.errors import PrepareError
from quantcfg.preparation.prepare import prepare, prepare_qat_fx
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig

GLOBAL = {"": get_default_qconfig()}
BATCH = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class KeepsFeatures(Pair):
    """Its hooks hold the model itself, in a closure, as feature extractors have them."""

    def __init__(self) -> None:
        super().__init__()
        self.features: dict[str, Tensor] = {}
        for name, module in list(self.named_children()):
            module.register_forward_hook(self._keeper(name))

    def _keeper(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            self.features[name] = output

        return keep

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        return self.features["a"] * self.features.pop("b")


def wrapped(model: nn.Module) -> nn.Module:
    inner = model.forward

    @functools.wraps(inner)
    def forward(*args: Any) -> Tensor:
        return 2 * inner(*args)

    model.forward = forward
    return model


def written_as_a_lambda(model: Pair, power: int = 2) -> nn.Module:
    layers = [model.a, model.b]
    model.forward = lambda x, first=model.a: layers[1](first(x)) ** power
    return model


def of_functions(model: Pair) -> nn.Module:
    def twice(x: Tensor, depth: int = 1) -> Tensor:
        return twice(model.a(x), depth - 1) if depth else x  # holds itself

    model.steps = [
        twice,
        functools.partial(F.linear, weight=model.b.weight),
        functools.partial(twice, depth=2),
    ]
    model.forward = functools.partial(run_steps, model)
    return model


def run_steps(model: nn.Module, x: Tensor) -> Tensor:
    return functools.reduce(lambda value, step: step(value), model.steps, x)


class Slotted(Pair):
    __slots__ = ("factor",)

    def __init__(self) -> None:
        super().__init__()
        self.factor = 3.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


HOLDERS = {
    "hooks": KeepsFeatures,
    "wrapped": lambda: wrapped(Pair()),
    "lambda": lambda: written_as_a_lambda(Pair()),
    "functions": lambda: of_functions(Pair()),
    "slots": Slotted,
}


@pytest.mark.parametrize("name", HOLDERS)
def test_functions_that_hold_the_model_hold_the_copy(name: str) -> None:
    model = HOLDERS[name]().eval()
    prepared = prepare(model, GLOBAL, example_inputs=(BATCH,), stage="qat").train()

    prepared(BATCH).sum().backward()

    assert {id(p) for p in prepared.parameters()}.isdisjoint(id(p) for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.weight.grad is not None for module in (prepared.a, prepared.b))
    assert getattr(model, "features", {}) == {}
    set_fake_quantize(prepared.eval(), FakeQuantState.FLOAT)
    assert torch.equal(prepared(BATCH), model(BATCH))


def test_what_a_hook_fills_for_others_stays_theirs() -> None:
    model, seen = Pair(), []
    model.a.register_forward_hook(lambda module, args, output: seen.append(id(module)) or model.b(output))

    prepare(model, GLOBAL, example_inputs=(BATCH,))

    assert len(seen) == 1
    assert seen != [id(model.a)]


def test_a_lock_is_shared_and_a_generator_is_not() -> None:
    class Noisy(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.held = {"lock": threading.Lock()}
            self.noise = [torch.Generator().manual_seed(3)]
            self.kept = [self.a.weight * 2]

        def forward(self, x: Tensor) -> Tensor:
            with self.held["lock"]:
                return super().forward(x) + torch.randn(8, generator=self.noise[0])

    model = Noisy()
    prepared = prepare(model, GLOBAL, example_inputs=(BATCH,))
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    assert torch.equal(prepared(BATCH), model(BATCH))
    assert prepared.held is model.held
    assert torch.equal(prepared.kept[0], model.kept[0])


def test_a_model_that_cannot_be_copied_is_named() -> None:
    class Unique(Pair):
        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            raise TypeError("there is only one of me")

    with pytest.raises(PrepareError) as caught:
        prepare(nn.Sequential(Unique()), GLOBAL, example_inputs=(BATCH,))

    assert caught.value.message == "the model cannot be copied: there is only one of me"
    assert caught.value.hint == "copy.deepcopy of each of its modules has to work"


class LeavesTraces(Pair):
    """A forward that counts, appends, replaces a buffer, makes a module, and writes into its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(8), persistent=False)
        self.calls, self.shapes = 0, []
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.rows, self.clipped = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.shapes.append(x.shape)
        self.state = self.state + 1
        if not hasattr(self, "last"):
            self.last = nn.Linear(8, 8)
        with torch.no_grad():
            self.matrix.mul_(0.5)
        self.rows.data = self.rows.data / 2
        self.clipped.data.clamp_(-0.1 * self.calls, 0.1 * self.calls)
        y = super().forward(x) @ self.matrix @ self.rows @ self.clipped
        return self.last(y) * 0 + y + self.state + len(self.shapes)


class Adapter(nn.Linear):
    """Merges its adapter into its weight in evaluation, as adapters do."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.delta, self.merged = nn.Parameter(torch.randn(8, 8)), False

    def train(self, mode: bool = True) -> nn.Module:
        if self.merged == mode:
            self.weight.data += -self.delta if mode else self.delta
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + (0 if self.merged else F.linear(x, self.delta))


@pytest.mark.parametrize("kind", [LeavesTraces, Adapter])
def test_recording_leaves_no_trace(kind: type[nn.Module]) -> None:
    model = kind()
    prepared = prepare(model, GLOBAL, example_inputs=(BATCH,))
    pending = prepare_qat_fx(model, GLOBAL)
    set_fake_quantize(pending, FakeQuantState.FLOAT)

    set_fake_quantize(prepared, FakeQuantState.FLOAT)
    with torch.no_grad():
        for other in (prepared, pending):
            assert torch.equal(copy.deepcopy(other)(BATCH), copy.deepcopy(model)(BATCH))
            assert torch.equal(copy.deepcopy(other).eval()(BATCH), copy.deepcopy(model).eval()(BATCH))


def test_calibrating_gives_an_adapter_back_as_it_was() -> None:
    prepared = prepare(Adapter(), GLOBAL, example_inputs=(BATCH,))
    with calibrating(prepared):
        prepared(BATCH)
        assert prepared.merged

    assert (prepared.training, prepared.merged) == (True, False)


class CopiesItsParts(Pair):
    def forward(self, x: Tensor, *, again: bool = True) -> Tensor:
        if again:
            return copy.deepcopy(self)(x, again=False) + copy.deepcopy(self.b)(x)
        return super().forward(x)


def test_a_copy_of_a_part_in_the_forward_is_that_part() -> None:
    model = CopiesItsParts()
    prepared = prepare(model, GLOBAL, example_inputs=(BATCH,))
    with calibrating(prepared):
        prepared(BATCH)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    assert [name for name in fake_quants(prepared) if name.startswith("b")] == ["b.weight", "b:1.output"]
    torch.testing.assert_close(prepared(BATCH), model(BATCH), rtol=0.1, atol=0.1)
    set_fake_quantize(prepared, FakeQuantState.FLOAT)
    assert torch.equal(prepared(BATCH), model(BATCH))


class AsksWhatItIs(Pair):
    def forward(self, x: Tensor) -> Tensor:
        modules = [module for module in self.modules() if module is not self]
        tensors = [*self.parameters(), *self.a.buffers()]
        return super().forward(x) * len(modules) * len(tensors) + sum(tensor.sum() for tensor in tensors)


def test_a_forward_sees_the_modules_and_parameters_it_came_with() -> None:
    model = AsksWhatItIs()
    learned = {"": get_default_qconfig("lsq", "lsq")}
    prepared = prepare(model, learned, example_inputs=(BATCH,), stage="qat")
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    assert torch.equal(prepared(BATCH), model(BATCH))
    assert len(list(prepared.parameters())) > len(list(model.parameters()))


class ListsOthers(Pair):
    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Any:
        return ((name, p) for name, p in super().named_parameters(prefix, recurse) if "bias" in name)


def test_parameters_that_a_model_does_not_list_are_its_own() -> None:
    model = ListsOthers()
    prepared = prepare(model, GLOBAL, example_inputs=(BATCH,))

    assert "a.weight" in fake_quants(prepared)
    assert prepared.a.weight is not model.a.weight
