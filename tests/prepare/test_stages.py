"""From calibration to training: in the same model, and by loading into another one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import quantcfg as qc
from quantcfg.errors import ConfigError, NumericError, PrepareError, QuantcfgError
from tests.prepare.models import ResNet

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SEARCHED = {"": qc.get_default_qconfig(activation_observer="mse", weight_observer="mse")}
KEPT = {"averaging_constant": 0}
FIXED = {"": qc.get_default_qconfig(activation_qkwargs=KEPT, weight_qkwargs=KEPT)}
LSQ = {"": qc.get_default_qconfig("lsq", "lsq")}
OUT32 = qc.get_default_qconfig(activation_fake_quant=None)
FEWER = {"": qc.get_default_qconfig(), "module_name": {"blocks": None}}


def calibrated(rules: dict[str, Any], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    prepared = qc.prepare(ResNet().eval(), rules, example_inputs=X, **options)
    with qc.calibrating(prepared):
        for batch in X.split(4):
            prepared(batch)
    return prepared


def scales(prepared: nn.Module) -> dict[str, list[float]]:
    return {name: module.qparams().scale.tolist() for name, module in qc.fake_quants(prepared).items()}


def test_a_range_is_clipped_in_place_as_it_is_by_loading_and_does_not_jump() -> None:
    clip = {"xmin": -0.5, "xmax": 0.5, "averaging_constant": 0}
    rules = {"": qc.get_default_qconfig(activation_observer="clip", activation_qkwargs=clip)}
    source, model = calibrated(SEARCHED), calibrated(SEARCHED)
    loaded = qc.prepare(ResNet().eval(), rules, example_inputs=X, stage="qat")
    qc.load_observer_params(source, loaded)
    qc.change_stage(model, rules)

    assert scales(model) == scales(loaded)
    before = scales(model)["input.x"]
    assert before[0] == pytest.approx(0.5 / 127.5)
    model.train()(X)
    assert scales(model)["input.x"] == before


@pytest.mark.parametrize("bn", ["fold", "keep", "freeze"])
def test_in_place_and_by_loading_are_the_same(bn: str) -> None:
    source, model = calibrated(SEARCHED, bn=bn), calibrated(SEARCHED, bn=bn)
    loaded = qc.prepare(ResNet().eval(), FIXED, example_inputs=X, stage="qat", bn=bn)
    loaded.load_state_dict(source.state_dict(), strict=False)
    qc.load_observer_params(source, loaded)
    parameters = [id(parameter) for parameter in model.parameters()]

    report = qc.change_stage(model, FIXED)

    assert (len(report.loaded), report.missing, report.unobserved) == (17, (), ())
    assert scales(model) == scales(source)
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert {type(module.observer).__name__ for module in qc.fake_quants(model).values()} == {"MinMaxObserver"}
    assert (qc.plan_of(model).stage, qc.state_of(model)) == ("qat", qc.FakeQuantState.QAT)
    assert list(model.state_dict()) == list(loaded.state_dict())
    for _ in range(2):
        assert torch.equal(model.train()(X), loaded.train()(X))
        assert torch.equal(model.eval()(X), loaded.eval()(X))
    assert torch.equal(copy.deepcopy(model)(X), model(X))
    if bn == "fold":
        assert scales(model) == scales(source)


def test_a_learned_scale_starts_from_what_was_found_and_is_trained() -> None:
    model = calibrated(SEARCHED)
    before = scales(model)

    qc.change_stage(model, LSQ)
    assert scales(model) == before
    model.train()(X).square().sum().backward()

    learned = {name: p.grad for name, p in model.named_parameters() if name.endswith(".scale")}
    assert len(learned) == 17
    assert all(grad is not None for grad in learned.values())


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({**FIXED, "module_name": {"nope": None}}, ConfigError, "the rule `nope` matches nothing"),
        (
            SEARCHED,
            PrepareError,
            "blocks.0.bn1, blocks.0.bn2, blocks.1.bn1, blocks.1.bn2 would have to be folded",
        ),
        (
            {**FEWER, "module_name": {"blocks": None, "add_0": OUT32}},
            NumericError,
            "2 of 11 quantizers have no calibrated range to start from",
        ),
        (
            {**LSQ, "module_name": {"blocks": None}},
            PrepareError,
            "10 parameters of quantizers or folded batch norms appeared after an optimizer was made",
        ),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(
    rules: dict[str, Any], error: type[QuantcfgError], message: str
) -> None:
    model = calibrated(FEWER)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    qc.set_fake_quantize(model, qc.FakeQuantState.VALIDATION)
    expected, keys = model(X), list(model.state_dict())

    with pytest.raises(error, match=message):
        qc.change_stage(model, rules)

    assert torch.equal(model(X), expected)
    assert list(model.state_dict()) == keys
    assert qc.state_of(model) is qc.FakeQuantState.VALIDATION
    del optimizer


def test_a_part_cannot_change_its_stage() -> None:
    with pytest.raises(PrepareError) as caught:
        qc.change_stage(calibrated(FIXED).blocks, FIXED)
    assert (caught.value.message, caught.value.hint) == (
        "this Sequential is a part of a prepared model",
        "change the stage of the whole model",
    )


def test_rules_for_batch_norms_hold_after_they_were_folded() -> None:
    rules = {**FIXED, "module_type": {nn.BatchNorm2d: qc.get_default_qconfig()}}
    assert len(qc.change_stage(calibrated(rules), rules).loaded) == 17


def test_the_report_is_a_table_with_what_was_not_loaded_first() -> None:
    training = qc.prepare(ResNet().eval(), SEARCHED, example_inputs=X, stage="qat")
    lines = str(qc.load_observer_params(calibrated(FEWER), training, strict=False)).splitlines()

    assert lines[0] == "blocks.0.conv1.weight         left at its default: not in the source"
    assert lines[8] == "add_0.input_0                 not in this model"
    assert lines[9] == "input.x                       loaded"
    assert len(lines) == 18


def test_ranges_are_loaded_from_and_into_prepared_models_of_one_architecture() -> None:
    prepared = calibrated(FIXED)
    for pair in ((prepared, ResNet()), (ResNet(), prepared)):
        with pytest.raises(PrepareError, match="this ResNet is not a prepared model"):
            qc.load_observer_params(*pair)

    narrow, wide = (nn.Sequential(nn.Linear(4, count)) for count in (3, 5))
    source = qc.prepare(narrow, FIXED, example_inputs=torch.ones(2, 4))
    with qc.calibrating(source):
        source(torch.ones(2, 4))
    with pytest.raises(NumericError) as caught:
        qc.load_observer_params(source, qc.prepare(wide, FIXED, example_inputs=torch.ones(2, 4), stage="qat"))
    assert caught.value.message == "'0.weight' has 5 channels, and 3 where its range comes from"
