"""What users wrap around a model: compilers, exporters, autocast, checkpointing, functional calls, DDP."""

from __future__ import annotations

import copy
import inspect
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from types import MethodType

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from quantcfg.errors import NumericError, QuantcfgWarning
from quantcfg.preparation.prepare import prepare, prepare_qat_fx
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, set_fake_quantize, state_of
from quantcfg.qconfig import get_default_qconfig
from tests.prepare.models import CASES, Encoder, ResNet

GLOBAL = {"": get_default_qconfig()}
IMAGE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _compiled_anew() -> None:
    """All prepared models have one forward, which the compiler compiles for eight of them in one process."""
    torch.compiler.reset()


def calibrated_resnet(stage: str = "qat") -> nn.Module:
    torch.manual_seed(0)
    prepared = prepare(ResNet().eval(), GLOBAL, example_inputs=(IMAGE,), stage=stage)
    with calibrating(prepared):
        prepared(IMAGE)
    return prepared


def test_compiled_without_graph_breaks_it_computes_the_same() -> None:
    prepared = calibrated_resnet()
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    expected = prepared(IMAGE)

    actual = torch.compile(prepared, fullgraph=True, backend="aot_eager")(IMAGE)

    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_compiled_training_step_equals_the_eager_one() -> None:
    gradients = []
    for compiled in (False, True):
        prepared = calibrated_resnet().train()
        set_fake_quantize(prepared, FakeQuantState.QAT)
        call = torch.compile(prepared, fullgraph=True, backend="aot_eager") if compiled else prepared
        call(IMAGE).square().sum().backward()
        gradients.append({name: p.grad for name, p in prepared.named_parameters()})

    assert gradients[0].keys() == gradients[1].keys()
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, rtol=1e-5, atol=1e-6)


# Inductor imports parts of torch that warn of each other.
INDUCTOR = (pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning"))
BACKENDS = ["aot_eager", pytest.param("inductor", marks=INDUCTOR)]


def calibrated_encoder(how: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    make, inputs = CASES[f"encoder_{how}"]
    batch = inputs()
    prepared = prepare(make().eval(), GLOBAL, example_inputs=batch, stage="qat")
    with calibrating(prepared):
        prepared(*batch)
    return prepared, batch


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["sdpa", pytest.param("add", marks=pytest.mark.slow), "masked_fill"])
def test_a_compiled_encoder_has_no_graph_breaks_in_validation(how: str, backend: str) -> None:
    prepared, batch = calibrated_encoder(how)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    expected = prepared(*batch)

    actual = torch.compile(prepared, fullgraph=True, backend=backend)(*batch)

    # A fused kernel may round the last bit otherwise, and a value on the edge of a step with it.
    torch.testing.assert_close(actual, expected, rtol=0, atol=0 if backend == "aot_eager" else 0.05)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["fake_quant", "lsq"])
def test_a_compiled_encoder_trains_without_graph_breaks(kind: str, backend: str) -> None:
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        make, inputs = CASES["encoder_sdpa"]
        batch = inputs()
        rules = {"": get_default_qconfig(kind, kind)}
        prepared = prepare(make(), rules, example_inputs=batch, stage="qat")
        with calibrating(prepared):
            prepared(*batch)
        call = torch.compile(prepared, fullgraph=True, backend=backend) if compiled else prepared
        call(*batch).square().sum().backward()
        grads = torch.cat([p.grad.flatten() for p in prepared.parameters() if p.grad is not None])
        ranges = torch.cat([f.qparams().scale for f in fake_quants(prepared).values()])
        results.append((grads, ranges))

    (eager_grads, eager_ranges), (grads, ranges) = results
    assert torch.cosine_similarity(grads, eager_grads, dim=0) > 0.999
    torch.testing.assert_close(ranges, eager_ranges, rtol=1e-2, atol=1e-6)


FLOAT, QAT = FakeQuantState.FLOAT, FakeQuantState.QAT
CALIBRATION, VALIDATION = (
    pytest.param(state, marks=pytest.mark.slow)  # what they break, training breaks too
    for state in (FakeQuantState.CALIBRATION, FakeQuantState.VALIDATION)
)


class Branching(nn.Module):
    """Its branch depends on data: the compiler breaks the graph there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.matrix = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) + x
        x = x * 2 if x.sum() > 0 else x * 3
        x = torch.addmm(x, x, self.matrix)  # which compiled code calls by its name
        return self.second(x) * x


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at all it meets
@pytest.mark.parametrize("state", [FLOAT, CALIBRATION, QAT, VALIDATION])
def test_a_model_with_graph_breaks_of_its_own_gets_no_more(state: FakeQuantState) -> None:
    torch.manual_seed(0)
    model, x = Branching(), torch.randn(5, 6)
    prepared = prepare(model, GLOBAL, example_inputs=(x,), stage="qat")
    with calibrating(prepared):
        prepared(x)
    set_fake_quantize(prepared, state)
    torch.compiler.reset()
    breaks = torch._dynamo.explain(model)(x).graph_break_count
    other = copy.deepcopy(prepared)

    assert torch._dynamo.explain(copy.deepcopy(prepared))(x).graph_break_count == breaks == 1
    torch.testing.assert_close(torch.compile(other, backend="aot_eager")(x), prepared(x), rtol=0, atol=0)


def test_one_compiled_graph_serves_all_batch_sizes() -> None:
    prepared = calibrated_resnet()
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    torch.compiler.reset()
    counters.clear()
    call = torch.compile(prepared, fullgraph=True, backend="eager")

    for size in (4, 3, 2, 6):
        assert call(IMAGE.repeat(2, 1, 1, 1)[:size]).shape[0] == size

    assert counters["stats"]["unique_graphs"] == 2  # for the first size, and for all others


class Patches(nn.Module):
    """Asks for a shape where nothing is quantized: compiled, that op has another name."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, 8, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != 3:
            raise ValueError
        return self.projection(images).flatten(2).transpose(1, 2)


def test_a_module_that_asks_for_shapes_compiles_for_all_batch_sizes() -> None:
    torch.manual_seed(0)
    prepared = prepare(nn.Sequential(Patches(), nn.ReLU()), GLOBAL, example_inputs=(IMAGE,), stage="qat")
    with calibrating(prepared):
        prepared(IMAGE)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    call = torch.compile(prepared, fullgraph=True, backend="eager")

    for size in (4, 3, 2):
        torch.testing.assert_close(call(IMAGE[:size]), prepared(IMAGE[:size]), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["fake_quant", "lsq", "pact"])
def test_it_trains_compiled_for_any_shape_from_the_first_on(kind: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(3, 4)
    prepared = prepare(model, {"": get_default_qconfig(kind, kind)}, example_inputs=(x,), stage="qat")
    with calibrating(prepared):
        prepared(x)
    set_fake_quantize(prepared, FakeQuantState.QAT)
    other = copy.deepcopy(prepared)

    torch.compile(prepared, fullgraph=True, backend="eager", dynamic=True)(x).sum().backward()
    other(x).sum().backward()
    for parameter, wanted in zip(prepared.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, wanted.grad, rtol=0, atol=0)


def test_it_exports() -> None:
    prepared = calibrated_resnet()
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    program = torch.export.export(prepared, (IMAGE,))

    torch.testing.assert_close(program.module()(IMAGE), prepared(IMAGE), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")  # counters
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", ["fake_quant", "lsq", "pact"])
def test_it_exports_while_gradients_are_on(kind: str, strict: bool) -> None:
    weight = "fake_quant" if kind == "pact" else kind
    rules, batch = {"": get_default_qconfig(kind, weight)}, torch.randn(4, 8)
    prepared = prepare(nn.Linear(8, 4), rules, example_inputs=batch)
    with calibrating(prepared):
        prepared(batch)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    program = torch.export.export(prepared, (batch,), strict=strict)

    torch.testing.assert_close(program.module()(batch), prepared(batch), rtol=0, atol=0)


def test_functional_call_uses_the_tensors_it_is_given() -> None:
    prepared = calibrated_resnet()
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    zeros = {"classifier.weight": torch.zeros(3, 8), "classifier.bias": torch.zeros(3)}

    assert torch.func.functional_call(prepared, zeros, (IMAGE,)).abs().max() == 0


def test_the_gradient_of_torch_func_is_that_of_backward() -> None:
    prepared = calibrated_resnet().eval()
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(prepared, parameters, (IMAGE,)).square().sum()

    prepared(IMAGE).square().sum().backward()
    gradients = torch.func.grad(loss)(dict(prepared.named_parameters()))
    for name, parameter in prepared.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-6)


def test_vmap_runs_a_prepared_model_per_sample() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 6)
    prepared = prepare(model, GLOBAL, example_inputs=(x,))
    with calibrating(prepared):
        prepared(x)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    torch.testing.assert_close(torch.func.vmap(prepared)(x), prepared(x))


class Handover(nn.Module):
    """Hands the turn to the other thread in the middle of its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.barrier: threading.Barrier | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * 2
        if self.barrier is not None:
            self.barrier.wait(timeout=600)
        return self.second(x * 3) * 5 + x


def test_two_threads_run_one_prepared_model_at_the_same_time() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(4, 6), torch.randn(4, 6) * 0.1]
    prepared = prepare(Handover(), GLOBAL, example_inputs=(batches[0],))
    with calibrating(prepared):
        prepared(batches[0])
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    expected = [prepared(batch) for batch in batches]
    prepared.barrier = threading.Barrier(2)

    with ThreadPoolExecutor(2) as pool:
        actual = list(pool.map(prepared, batches))

    for result, alone in zip(actual, expected, strict=True):
        torch.testing.assert_close(result, alone, rtol=0, atol=0)


def test_autocast_runs_and_keeps_qparams_in_float32() -> None:
    prepared = calibrated_resnet().train()
    set_fake_quantize(prepared, FakeQuantState.QAT)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = prepared(IMAGE).float().square().sum()
    loss.backward()

    assert all(module.qparams().scale.dtype == torch.float32 for module in fake_quants(prepared).values())
    assert all(p.grad.isfinite().all() for p in prepared.parameters() if p.grad is not None)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.use = True
        self.reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return checkpoint(self.body, x, use_reentrant=self.reentrant) if self.use else self.body(x)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of recording, without gradients
@pytest.mark.parametrize("reentrant", [False, True], ids=["hooks", "reentrant"])
def test_activation_checkpointing_observes_once_and_gives_the_same_gradients(reentrant: bool) -> None:
    x = torch.randn(4, 6)
    states = []
    for use in (True, False):
        torch.manual_seed(0)
        model = Checkpointed()
        model.use, model.reentrant = use, reentrant
        prepared = prepare(model, GLOBAL, example_inputs=(x,), stage="qat").train()
        for scale in (1.0, 2.0):
            prepared(x * scale).square().sum().backward()
        grads = {name: p.grad for name, p in prepared.named_parameters()}
        states.append(prepared.state_dict() | {f"{name}.grad": grad for name, grad in grads.items()})

    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=0)


def test_the_signature_that_trainers_look_at_is_the_original_one() -> None:
    prepared = prepare(
        Encoder().eval(), GLOBAL, example_inputs=(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4))
    )

    assert list(inspect.signature(prepared.forward).parameters) == ["ids", "keep"]


def test_a_part_of_a_prepared_model_is_quantized_on_its_own() -> None:
    prepared = calibrated_resnet()
    x = torch.rand(2, 4, 8, 8)
    set_fake_quantize(prepared, FakeQuantState.FLOAT)
    float_result = prepared.blocks[0](x)

    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    assert not torch.equal(prepared.blocks[0](x), float_result)


def test_hooks_of_the_user_still_run() -> None:
    model = ResNet().eval()
    seen: list[str] = []
    model.stem[0].register_forward_hook(lambda *_: seen.append("stem"))
    prepared = prepare(model, GLOBAL, example_inputs=(IMAGE,))
    seen.clear()

    prepared(IMAGE)

    assert seen == ["stem"]


def test_half_precision_of_the_whole_model_does_not_touch_qparams() -> None:
    prepared = calibrated_resnet()
    before = {name: module.qparams().scale for name, module in fake_quants(prepared).items()}

    prepared.to(torch.bfloat16)

    for name, module in fake_quants(prepared).items():
        torch.testing.assert_close(module.qparams().scale, before[name], rtol=0, atol=0)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    assert prepared(IMAGE.bfloat16()).dtype == torch.bfloat16


def bound_again(model: nn.Module) -> nn.Module:
    """Wraps a forward as `accelerate` does for mixed precision: what the method is bound to counts."""
    function = model.forward.__func__  # type: ignore[union-attr]
    model.forward = MethodType(lambda module, *args: 2 * function(module, *args), model)  # type: ignore[method-assign]
    return model


def test_a_forward_that_is_wrapped_and_bound_again_is_that_of_each_copy() -> None:
    prepared = bound_again(calibrated_resnet().eval())
    expected = prepared(IMAGE)
    copied = copy.deepcopy(prepared)
    with torch.no_grad():
        copied.classifier.weight.zero_()
        copied.classifier.bias.zero_()

    assert copied(IMAGE).abs().max() == 0
    torch.testing.assert_close(prepared(IMAGE), expected, rtol=0, atol=0)
    assert state_of(bound_again(prepare(nn.Linear(2, 2), GLOBAL, example_inputs=torch.ones(1, 2))))


def test_a_forward_that_is_bound_again_before_the_first_batch_is_quantized() -> None:
    x = torch.randn(4, 6)
    prepared = bound_again(prepare_qat_fx(nn.Sequential(nn.Linear(6, 3), nn.ReLU()), GLOBAL))

    prepared(x)

    assert [name for name, module in fake_quants(prepared).items() if not module.observed] == []


def test_a_layer_that_took_another_ones_place_is_said_to_be_in_float() -> None:
    prepared = calibrated_resnet()
    prepared.classifier = nn.Linear(8, 5)
    text = (
        "'linear' runs in the model now where it did not with the example inputs: what was not recorded "
        "there stays in float; prepare with inputs that reach it, if it shall be quantized"
    )

    with pytest.warns(QuantcfgWarning, match=f"^{re.escape(text)}$"):
        assert prepared(IMAGE).shape == (4, 5)


def in_turn() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Identity(), nn.Linear(8, 3)))
    return prepare(model, GLOBAL, example_inputs=(torch.randn(4, 6),))


def test_an_activation_that_took_another_ones_place_is_said_to_be_in_float() -> None:
    prepared = in_turn()
    prepared[2][0] = nn.GELU()
    text = (
        "'gelu' runs in 2 now where it did not with the example inputs: what was not recorded there stays in "
        "float; prepare with inputs that reach it, if it shall be quantized"
    )

    with pytest.warns(QuantcfgWarning, match=f"^{re.escape(text)}$"):
        prepared(torch.randn(4, 6))


def test_quantizers_that_are_gone_are_told_of_once() -> None:
    prepared = in_turn()
    prepared[1] = nn.ReLU6()
    text = (
        "1 quantizer went with modules that were replaced or deleted after preparation: 1.output: what is "
        "there now stays in float; change the float model, then prepare it"
    )

    with pytest.warns(QuantcfgWarning, match=f"^{re.escape(text)}$"):
        set_fake_quantize(prepared, FakeQuantState.CALIBRATION)
    with calibrating(prepared):
        prepared(torch.randn(4, 6))


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * 2) + x


def test_parts_that_others_call_again_and_again_are_said_to_miss_what_is_around_them() -> None:
    x = torch.randn(4, 6)
    prepared = prepare(Around(), GLOBAL, example_inputs=(x,), stage="qat")
    prepared.first(x)  # once, as an encoder before its decoder
    prepared(x)
    prepared.first(x)
    text = (
        "module 'first' runs outside of the forward of the model: the ops of that forward stay in float "
        "where others call them; let it run as it did with the example inputs"
    )

    with pytest.warns(QuantcfgWarning, match=f"^{re.escape(text)}$"):
        Around.forward(prepared, x)
    Around.forward(prepared, x)  # it was said


def test_a_layer_that_was_cut_to_size_is_told_when_to_be_prepared() -> None:
    prepared = calibrated_resnet()
    prepared.classifier.weight = nn.Parameter(torch.randn(2, 8))

    text = "classifier.weight: expected 3 channels along axis 0, got shape (2, 8)"
    with pytest.raises(NumericError, match=f"^{re.escape(text)}$") as raised:
        prepared(IMAGE)
    assert raised.value.hint == "prepare the model after its layers have got the shapes that they are to have"
