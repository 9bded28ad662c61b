"""What `prepare` takes although it looks hard, and what it refuses, with a reason."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

from quantcfg.errors import PrepareError
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, plan_of, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig
from tests.prepare.models import ByHand, ResNet

GLOBAL = {"": get_default_qconfig()}
IMAGE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_attributes_computed_from_parameters_are_copied_as_weight_norm_and_pruning_leave_them() -> None:
    model, inputs = ByHand().eval(), (torch.randn(2, 3, 6, 6),)
    model.cache = model.matrix * 2
    pruned = torch.nn.utils.prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=0.5)

    prepared = prepare(model, GLOBAL, example_inputs=inputs)
    of_pruned = prepare(pruned, GLOBAL, example_inputs=(torch.randn(2, 4),), stage="qat").train()

    assert torch.equal(prepared.cache, model.cache)
    of_pruned(torch.randn(2, 4)).sum().backward()
    assert of_pruned.weight_orig.grad is not None
    assert pruned.weight_orig.grad is None


def test_a_model_that_is_not_ready_is_refused() -> None:
    lazy, x = nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 4)

    with pytest.raises(PrepareError, match="shapes are not known yet"):
        prepare(lazy, GLOBAL, example_inputs=(x,))
    with pytest.raises(PrepareError, match="is compiled: its ops cannot be seen"):
        prepare(traced(nn.Linear(4, 4), x), GLOBAL, example_inputs=(x,))


def traced(module: nn.Module, x: Tensor) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that it is deprecated
        return torch.jit.trace(module, x)


@pytest.mark.parametrize("state", FakeQuantState)
def test_a_prepared_model_is_traced_in_float_alone(state: FakeQuantState) -> None:
    x = torch.randn(2, 4)
    prepared = prepare(nn.Linear(4, 4), GLOBAL, example_inputs=(x,))
    with calibrating(prepared):
        prepared(x)
    set_fake_quantize(prepared, state)

    if state is FakeQuantState.FLOAT:
        assert torch.equal(traced(prepared, x)(x), prepared(x))
        return
    with pytest.raises(PrepareError) as caught:
        traced(prepared, x)
    assert str(caught.value) == "torch.jit.trace cannot follow a prepared model that observes or quantizes"
    assert caught.value.hint == (
        "torch.export.export and torch.onnx.export(dynamo=True) can; or trace it in FLOAT"
    )


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("state", [FakeQuantState.FLOAT, FakeQuantState.CALIBRATION])
def test_a_prepared_model_is_not_scripted(state: FakeQuantState) -> None:
    prepared = prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), GLOBAL, example_inputs=torch.randn(2, 4))
    set_fake_quantize(prepared, state)

    with pytest.raises(PrepareError) as caught:
        torch.jit.script(prepared)
    assert str(caught.value) == (
        "torch.jit.script cannot compile a prepared model: it would see the layers alone"
    )
    assert caught.value.hint == (
        "`quantcfg export` writes ONNX, and torch.export.export takes the model as it is; or script the "
        "float model"
    )


def test_a_part_that_is_compiled_runs_as_it_is() -> None:
    x = torch.randn(2, 4)
    model = nn.Sequential(nn.Linear(4, 4), traced(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), x))

    prepared = prepare(model, GLOBAL, example_inputs=(x,))
    with calibrating(prepared):
        prepared(x)
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    assert torch.equal(prepared(x), model(x))
    assert "0.weight" in fake_quants(prepared)


def test_a_module_that_holds_two_prepared_models_is_refused_by_name() -> None:
    x = torch.randn(2, 4)
    parts = {name: prepare(nn.Linear(4, 4), GLOBAL, example_inputs=(x,)) for name in ("teacher", "student")}
    both = nn.ModuleDict(parts)

    for ask in (fake_quants, plan_of, lambda m: set_fake_quantize(m, FakeQuantState.FLOAT)):
        with pytest.raises(PrepareError, match="holds 2 prepared models: 'teacher', 'student'"):
            ask(both)


def test_calibrating_for_training_warns_of_batch_norms_that_never_saw_a_batch() -> None:
    model, inputs = ResNet().eval(), (IMAGE,)
    for bn, warns in (("keep", True), ("fold", False)):
        prepared = prepare(model, GLOBAL, example_inputs=inputs, stage="qat", bn=bn)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with calibrating(prepared):
                prepared(*inputs)
        assert [str(w.message)[:27] for w in caught] == ["6 batch norms have not seen"] * warns


def test_a_model_without_a_place_for_quantizers_is_refused() -> None:
    class Containers(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.flip(0)

    with pytest.raises(
        PrepareError, match="holds no module besides containers: there is nothing to quantize"
    ):
        prepare(Containers(nn.ModuleList()), GLOBAL, example_inputs=torch.ones(2, 4))
