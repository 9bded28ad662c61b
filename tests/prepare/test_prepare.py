"""Every kind of model: prepared, unchanged in float, trainable, saved and loaded."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from quantcfg.errors import ConfigError, NumericError, PrepareError, QuantcfgWarning
from quantcfg.preparation.prepare import prepare, prepare_qat_fx
from quantcfg.preparation.state import (
    FakeQuantState,
    calibrating,
    check_observers,
    fake_quants,
    load_observer_params,
    plan_of,
    set_fake_quantize,
    state_of,
)
from quantcfg.preparation.tensors import tensors_in
from quantcfg.qconfig import get_default_qconfig
from tests.prepare.models import CASES

GLOBAL = {"": get_default_qconfig()}
NOT_PICKLED = {"parametrized"}  # torch refuses to pickle parametrized modules


def build(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    make, inputs = CASES[name]
    return make().eval(), inputs()


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors_in(model(*copy.deepcopy(inputs)))]


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def calibrated(name: str, **options: Any) -> tuple[nn.Module, nn.Module, Any]:
    model, inputs = build(name)
    prepared = prepare(model, GLOBAL, example_inputs=copy.deepcopy(inputs), **options)
    with calibrating(prepared):
        prepared(*copy.deepcopy(inputs))
        prepared(*copy.deepcopy(inputs))
    return model, prepared, inputs


@pytest.mark.parametrize("name", CASES)
def test_in_float_state_it_is_the_original_bit_for_bit(name: str) -> None:
    model, inputs = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = run(model, inputs)

    prepared = prepare(model, GLOBAL, example_inputs=copy.deepcopy(inputs), bn="keep")
    set_fake_quantize(prepared, FakeQuantState.FLOAT)

    assert type(prepared) is type(model)
    assert_equal(run(prepared, inputs), expected)
    assert_equal(run(model, inputs), expected)
    assert "forward" not in model.__dict__
    assert set(before) == set(model.state_dict()) <= set(prepared.state_dict())
    for key, value in before.items():
        torch.testing.assert_close(prepared.state_dict()[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_quantized_it_stays_close_and_is_not_the_float_model(name: str) -> None:
    model, prepared, inputs = calibrated(name, bn="keep")
    expected = run(model, inputs)

    set_fake_quantize(prepared, FakeQuantState.CALIBRATION)
    assert_equal(run(prepared, inputs), expected)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    quantized = run(prepared, inputs)

    for actual, wanted in zip(quantized, expected, strict=True):
        assert torch.cosine_similarity(actual.flatten(), wanted.flatten(), 0) > 0.99
    assert any(not torch.equal(a, b) for a, b in zip(quantized, expected, strict=True))
    assert_equal(run(prepared, inputs), quantized)


@pytest.mark.filterwarnings("ignore:.*batch norms have not seen a batch")
@pytest.mark.parametrize("name", CASES)
def test_a_training_step_reaches_every_parameter_that_float_training_reaches(name: str) -> None:
    model, prepared, inputs = calibrated(name, stage="qat", bn="keep")

    def gradients(module: nn.Module) -> dict[str, Tensor]:
        module.train().zero_grad()
        sum(t.square().mean() for t in tensors_in(module(*copy.deepcopy(inputs)))).backward()
        return {key: p.grad for key, p in module.named_parameters() if p.grad is not None}

    set_fake_quantize(prepared, FakeQuantState.QAT)
    reached = gradients(prepared)

    assert set(gradients(model)) <= set(reached)
    assert all(grad.isfinite().all() for grad in reached.values())


@pytest.mark.parametrize("name", CASES)
def test_its_state_copies_pickles_and_loads(name: str) -> None:
    model, prepared, inputs = calibrated(name)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    expected = run(prepared, inputs)

    assert_equal(run(copy.deepcopy(prepared), inputs), expected)
    if name not in NOT_PICKLED:
        assert_equal(run(pickle.loads(pickle.dumps(prepared)), inputs), expected)
    fresh = prepare(model, GLOBAL, example_inputs=copy.deepcopy(inputs))
    fresh.load_state_dict(prepared.state_dict())
    set_fake_quantize(fresh, FakeQuantState.VALIDATION)
    assert_equal(run(fresh, inputs), expected)


@pytest.mark.parametrize("name", CASES)
def test_every_op_is_accounted_for(name: str) -> None:
    _, prepared, _ = calibrated(name)
    plan = plan_of(prepared)

    names = [row.name for row in plan.rows]
    assert len(set(names)) == len(names)
    assert {row.role for row in plan.rows} <= {"quantized", "fused", "passed through", "float"}
    assert all(row.reason for row in plan.rows if row.role != "quantized")
    assert all(module.name == key for key, module in fake_quants(prepared).items())


def test_the_quantizers_of_a_deepcopy_are_its_own() -> None:
    _, prepared, inputs = calibrated("resnet")
    other = copy.deepcopy(prepared)

    set_fake_quantize(other, FakeQuantState.FLOAT)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    assert state_of(other) is FakeQuantState.FLOAT
    assert not torch.equal(run(prepared, inputs)[0], run(other, inputs)[0])


def test_another_batch_size_image_size_or_length_uses_the_same_quantizers() -> None:
    _, prepared, _ = calibrated("resnet")
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    assert prepared(torch.randn(1, 3, 12, 10)).shape == (1, 3)

    _, encoder, _ = calibrated("encoder_add")
    set_fake_quantize(encoder, FakeQuantState.VALIDATION)
    assert encoder(torch.ones(2, 11, dtype=torch.long), torch.ones(2, 11)).shape == (2, 4)


def test_a_loop_that_runs_longer_uses_the_last_quantizer_of_the_loop() -> None:
    _, prepared, inputs = calibrated("branches")
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    longer = prepared(*inputs, rounds=4)

    step = fake_quants(prepared)["tanh_3.output"].qparams()
    assert torch.equal(longer, (longer / step.scale).round() * step.scale)


def test_a_branch_that_the_example_never_took_stays_float_and_says_so() -> None:
    _, prepared, _ = calibrated("branches")
    assert "small" in plan_of(prepared).never_run
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    with pytest.warns(UserWarning, match="module 'small' runs now but did not with the example inputs"):
        prepared(torch.zeros(1, 4))


def test_calibration_lists_what_never_observed_anything() -> None:
    model, inputs = build("branches")
    prepared = prepare(model, GLOBAL, example_inputs=inputs)

    with pytest.raises(NumericError) as caught, calibrating(prepared):
        pass

    assert caught.value.message == (
        "13 of 13 quantizers never observed a value: input.x, large.weight, large.output, steps.0.weight, "
        "steps.0.output, steps.0:1.output, steps.1.weight, steps.1.output and 5 more"
    )


def test_validation_without_calibration_is_refused() -> None:
    model, inputs = build("resnet")
    prepared = prepare(model, GLOBAL, example_inputs=inputs)

    with pytest.raises(NumericError, match="never observed a value"):
        set_fake_quantize(prepared, FakeQuantState.VALIDATION)


def test_calibrating_restores_mode_and_state() -> None:
    model, inputs = build("resnet")
    prepared = prepare(model, GLOBAL, example_inputs=inputs, stage="qat").train()
    prepared.pool.eval()

    with calibrating(prepared):
        assert not prepared.training
        assert state_of(prepared) is FakeQuantState.CALIBRATION
        prepared(*inputs)

    assert prepared.training
    assert not prepared.pool.training
    assert state_of(prepared) is FakeQuantState.QAT


def test_in_qat_statistics_move_in_training_and_rest_in_evaluation() -> None:
    _, prepared, inputs = calibrated("resnet", stage="qat")
    set_fake_quantize(prepared, FakeQuantState.QAT)
    image = fake_quants(prepared)["input.x"].observer

    def moved() -> bool:
        before = image.max_val.clone()
        prepared(inputs[0] * 10)
        return not torch.equal(before, image.max_val)

    assert not moved()  # the prepared copy is in evaluation mode, as the model was
    prepared.train()
    assert moved()
    prepared.eval()
    assert not moved()


def test_quantizers_of_a_calibrated_model_start_a_training_model() -> None:
    model, prepared, inputs = calibrated("resnet")
    fixed = get_default_qconfig(activation_qkwargs={"averaging_constant": 0.0})
    training = prepare(model, {"": fixed}, example_inputs=inputs, stage="qat")

    report = load_observer_params(prepared, training)
    before = {name: module.qparams().scale for name, module in fake_quants(prepared).items()}
    training.train()(*inputs)

    assert report.missing == report.unexpected == report.unobserved == ()
    assert set(report.loaded) == set(before)
    for name, module in fake_quants(training).items():
        if not name.endswith(".weight"):
            torch.testing.assert_close(module.qparams().scale, before[name], rtol=0, atol=0)


def test_loading_ranges_is_strict_unless_asked_otherwise() -> None:
    model, inputs = build("resnet")
    empty = prepare(model, GLOBAL, example_inputs=inputs)
    training = prepare(model, GLOBAL, example_inputs=inputs, stage="qat")

    with pytest.raises(NumericError) as caught:
        load_observer_params(empty, training)
    message = str(caught.value)
    assert message.startswith("17 of 17 quantizers have no calibrated range to start from: input.x, ")
    assert message.endswith(" and 9 more")
    assert len(load_observer_params(empty, training, strict=False).unobserved) == 17


def test_preparing_twice_is_refused() -> None:
    _, prepared, inputs = calibrated("resnet")

    with pytest.raises(PrepareError) as caught:
        prepare(prepared, GLOBAL, example_inputs=inputs)

    assert caught.value.message == "this ResNet is prepared already"
    assert caught.value.hint == "prepare the float model again, or change the state with set_fake_quantize"


def test_only_the_first_of_several_forwards_is_the_example() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 4)
    once = prepare(model, GLOBAL, example_inputs=(x,))
    twice = prepare(model, GLOBAL, forward=lambda m: (m(x), m(x[:2])))

    assert plan_of(twice).rows == plan_of(once).rows
    assert list(fake_quants(twice)) == list(fake_quants(once))


def test_parts_that_are_called_in_place_of_the_model_have_inputs_of_their_own() -> None:
    model, x = nn.ModuleDict({"left": nn.Linear(4, 4), "right": nn.Linear(4, 4)}), torch.randn(3, 4)

    def forward(m: nn.Module) -> None:
        m["left"](x).sigmoid()
        m["right"](2 * x)

    prepared = prepare(model, GLOBAL, forward=forward)
    with calibrating(prepared):
        forward(prepared)

    assert [name for name in fake_quants(prepared) if "input" in name] == [
        "input.left.input",
        "input.right.input",
    ]


def test_recording_leaves_buffers_modes_and_random_numbers_alone() -> None:
    model, inputs = build("resnet")
    model.train()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)

    prepared = prepare(model, GLOBAL, example_inputs=inputs, bn="keep")

    assert torch.equal(torch.rand(3), expected)
    assert prepared.training
    for key, value in model.state_dict().items():
        torch.testing.assert_close(prepared.state_dict()[key], value, rtol=0, atol=0)


def test_weights_are_observed_once_in_a_calibration_and_again_in_the_next() -> None:
    _, prepared, inputs = calibrated("resnet")
    weight = fake_quants(prepared)["classifier.weight"]
    assert int(weight.observer.num_batches) == 1

    with calibrating(prepared):
        prepared(*inputs)

    assert int(weight.observer.num_batches) == 2
    assert int(fake_quants(prepared)["classifier.output"].observer.num_batches) == 3


def test_not_a_number_in_training_is_found_at_the_next_check() -> None:
    _, prepared, inputs = calibrated("resnet", stage="qat")
    set_fake_quantize(prepared.train(), FakeQuantState.QAT)
    prepared(inputs[0] * torch.nan)

    with pytest.raises(NumericError, match=r"^input.x: 1 of 3 batches held NaN or inf$"):
        check_observers(prepared)


def test_a_part_can_have_a_state_of_its_own() -> None:
    _, prepared, inputs = calibrated("resnet")
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    quantized = run(prepared, inputs)

    set_fake_quantize(prepared.blocks, FakeQuantState.FLOAT)
    mixed = run(prepared, inputs)
    set_fake_quantize(prepared.blocks, FakeQuantState.VALIDATION)

    assert not torch.equal(mixed[0], quantized[0])
    assert_equal(run(prepared, inputs), quantized)


def test_calibration_in_inference_mode_leaves_a_model_that_trains() -> None:
    model, inputs = build("resnet")
    prepared = prepare(model, GLOBAL, example_inputs=inputs, stage="qat")
    with torch.inference_mode(), calibrating(prepared):
        prepared(*inputs)

    prepared.train()(*inputs).square().sum().backward()

    assert prepared.classifier.weight.grad.isfinite().all()


def test_a_model_prepared_without_gradients_has_them_later() -> None:
    model, inputs = build("encoder_add")
    with torch.no_grad():
        prepared = prepare(model, {"": get_default_qconfig("lsq", "lsq")}, example_inputs=inputs, stage="qat")

    prepared.train()(*inputs).square().sum().backward()

    assert all(p.grad is not None for name, p in prepared.named_parameters() if "fake_quants" in name)


def test_evaluation_before_the_first_step_of_training_is_in_float_and_says_so() -> None:
    torch.manual_seed(0)
    make, inputs = CASES["resnet"]
    model, x = make().eval(), inputs()
    prepared = prepare(model, GLOBAL, example_inputs=x, stage="qat").train().eval()

    with pytest.warns(QuantcfgWarning, match="17 of 17 quantizers have seen nothing yet and stay in float"):
        before = prepared(*x)
    prepared(*x)
    prepared.train()(*x)
    prepared.eval()

    torch.testing.assert_close(before, model(*x), rtol=1e-4, atol=1e-5)  # but for the folded batch norms
    assert not torch.allclose(prepared(*x), before, rtol=1e-4, atol=1e-5)


def in_evaluation_first(model: nn.Module) -> None:
    model.train().eval()


def then_set(model: nn.Module) -> None:
    set_fake_quantize(model.eval(), FakeQuantState.QAT)


@pytest.mark.filterwarnings("ignore:.*have seen nothing yet")
@pytest.mark.parametrize("order", [nn.Module.eval, in_evaluation_first, then_set])
@pytest.mark.parametrize("forwards", [0, 1])
@pytest.mark.parametrize("load", ["load_observer_params", "load_state_dict"])
def test_what_is_loaded_in_evaluation_is_quantized_with(
    order: Callable[[nn.Module], Any], forwards: int, load: str
) -> None:
    make, inputs = CASES["resnet"]
    model, x = make().eval(), inputs()
    source = prepare(model, GLOBAL, example_inputs=x)
    with calibrating(source):
        source(*x)
    set_fake_quantize(source, FakeQuantState.VALIDATION)
    prepared = prepare(model, GLOBAL, example_inputs=x, stage="qat")
    order(prepared)
    for _ in range(forwards):
        prepared(*x)

    if load == "load_state_dict":
        prepared.load_state_dict(source.state_dict())
    else:
        load_observer_params(source, prepared)

    assert torch.equal(prepared(*x), source(*x))


def test_without_example_inputs_the_first_forward_may_be_an_evaluation() -> None:
    make, inputs = CASES["resnet"]
    model, x = make().eval(), inputs()
    prepared = prepare_qat_fx(model, GLOBAL).eval()

    with pytest.warns(QuantcfgWarning, match="17 of 17 quantizers have seen nothing yet and stay in float"):
        torch.testing.assert_close(prepared(*x), model(*x), rtol=1e-4, atol=1e-5)


def test_a_mode_that_is_assigned_module_by_module_switches_the_observers() -> None:
    make, inputs = CASES["resnet"]
    prepared = prepare(make().eval(), GLOBAL, example_inputs=inputs(), stage="qat").train()
    modes = {module: module.training for module in prepared.modules()}

    prepared.eval()
    assert not any(module.observing for module in fake_quants(prepared).values())
    for module, mode in modes.items():
        module.training = mode

    assert all(module.observing and module.quantizing for module in fake_quants(prepared).values())


def test_looking_through_the_modules_leaves_nothing_behind() -> None:
    make, inputs = CASES["resnet"]
    prepared = prepare(make().eval(), GLOBAL, example_inputs=inputs(), stage="qat")

    def hooks() -> list[int]:
        return [len(module._load_state_dict_post_hooks) for module in prepared.modules()]

    first = hooks()
    fake_quants(prepared)

    assert hooks() == first


class Scaled(nn.Linear):
    """Takes what it scales by alone by name."""

    def forward(self, input: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * scale


@pytest.mark.parametrize("make", [prepare, prepare_qat_fx])
@pytest.mark.parametrize("inputs", [(torch.ones(2, 4),), torch.ones(2, 4), {"input": torch.ones(2, 4)}])
def test_arguments_by_name_stand_beside_the_others(make: Callable[..., nn.Module], inputs: Any) -> None:
    prepared = make(
        Scaled(4, 2), GLOBAL, example_inputs=inputs, example_kw_inputs={"scale": torch.ones(2, 2)}
    )

    assert list(fake_quants(prepared)) == [
        "input.input", "linear_0.weight", "linear_0.output", "input.scale", "mul_0.output"
    ]  # fmt: skip


def test_arguments_by_name_may_be_all_there_are() -> None:
    x = {"input": torch.ones(2, 4), "scale": torch.ones(2, 2)}
    by_name = prepare(Scaled(4, 2), GLOBAL, example_kw_inputs=x)

    assert plan_of(by_name).rows == plan_of(prepare(Scaled(4, 2), GLOBAL, example_inputs=x)).rows


class NotesTheCollector(nn.Linear):
    """Knows whether garbage in cycles was looked for when it ran."""

    ran: ClassVar[bool]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        type(self).ran = gc.isenabled()
        return super().forward(input)


@pytest.mark.parametrize("is_on", [True, False])
@pytest.mark.parametrize("rules", [GLOBAL, {"module_name": {"missing": None}}])
def test_garbage_is_looked_for_as_before_and_in_every_forward(is_on: bool, rules: Any) -> None:
    before = gc.isenabled()
    (gc.enable if is_on else gc.disable)()
    try:
        with nullcontext() if rules is GLOBAL else pytest.raises(ConfigError):
            prepare(NotesTheCollector(4, 2), rules, example_inputs=torch.ones(2, 4))
        after = gc.isenabled()
    finally:
        (gc.enable if before else gc.disable)()

    assert after is NotesTheCollector.ran is is_on
