"""The reference's qconfig language: its names, its defaults, and each of them at work on the digits model."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantcfg as qc
from examples.digits.model import DigitsNet, build_model, load_split
from quantcfg.config.presets import DEPRECATED, PRESETS
from quantcfg.numeric.fake_quantize import FAKE_QUANTIZES
from quantcfg.numeric.observers import OBSERVERS
from quantcfg.qconfig import QConfig, preset_qconfig, qconfig_from_spec, spec_from_qconfig

REFERENCE = {name: preset for name, preset in PRESETS.items() if name.endswith("_qconfig")}
CURRENT = sorted(set(PRESETS) - set(DEPRECATED))


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    images, labels = load_split("train")
    return build_model(), images[:96], labels[:96]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(-1) == labels).float().mean())


def calibrated(digits: tuple[nn.Module, Tensor, Tensor], qconfig: QConfig, **options: Any) -> nn.Module:
    model, images, _ = digits
    prepared = qc.prepare(model, {"": qconfig}, example_inputs=(images[:2],), **options)
    with qc.calibrating(prepared):
        for batch in images.split(32):
            prepared(batch)
    return prepared


def test_the_six_parameters_have_the_defaults_of_the_reference() -> None:
    qconfig = qc.get_default_qconfig()

    assert (qconfig.activation.fake_quant, qconfig.activation.observer) == ("fake_quant", "min_max")
    assert (qconfig.weight.fake_quant, qconfig.weight.observer) == ("fake_quant", "min_max")
    assert qconfig.activation.kwargs == ()
    assert dict(qconfig.weight.kwargs) == {"qscheme": "per_channel_symmetric", "ch_axis": 0}
    assert qconfig.output is qconfig.activation
    assert qconfig.input is None


def test_weights_per_tensor_get_no_axis_and_the_dicts_stay_as_they_were() -> None:
    mine = {"qscheme": torch.per_tensor_symmetric}
    qconfig = qc.get_default_qconfig(weight_qkwargs=mine)

    assert dict(qconfig.weight.kwargs) == {"qscheme": "per_tensor_symmetric"}
    assert mine == {"qscheme": torch.per_tensor_symmetric}


def test_objects_and_names_mean_the_same() -> None:
    by_object = qc.get_default_qconfig(
        activation_qkwargs={"dtype": qc.qint16},
        weight_qkwargs={"qscheme": torch.per_channel_affine, "ch_axis": 0},
    )
    by_name = qc.get_default_qconfig(
        activation_qkwargs={"dtype": "qint16"}, weight_qkwargs={"qscheme": "per_channel_affine", "ch_axis": 0}
    )

    assert by_object == by_name
    assert by_object.activation.dtype == qc.qint16


def test_an_observer_among_the_parameters_wins_over_the_name() -> None:
    fixed = {"observer": OBSERVERS["fixed_scale"], "scale": 1 / 128}
    qconfig = qc.get_default_qconfig(activation_observer="mse", activation_qkwargs=fixed)

    module = qconfig.activation()
    assert qconfig.activation.observer == "fixed_scale"
    assert module.qparams().scale.tolist() == [1 / 128]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"activation_fake_quant": "lsqq"},
            "unknown fake quant 'lsqq'; did you mean 'lsq'? Known: fake_quant, lsq, pact",
        ),
        (
            {"weight_observer": "minmax"},
            "unknown observer 'minmax'; did you mean 'min_max'? Known: min_max, fixed_scale, clip, "
            "percentile, clip_std, mse, kl, mix",
        ),
        (
            {"activation_observer": "averages"},
            "unknown observer 'averages'. Known: min_max, fixed_scale, clip, percentile, clip_std, mse, kl, "
            "mix",
        ),
        (
            {"activation_qkwargs": {"top_bits": 12}},
            "unknown parameter of fake_quant with min_max 'top_bits'. Known: dtype, qscheme, ch_axis, "
            "quant_min, quant_max, averaging_constant, nonfinite",
        ),
    ],
)
def test_unknown_names_list_what_there_is(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        qc.get_default_qconfig(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("observer", "parameter"),
    [("min_max", "percentile"), ("percentile", "top_bits"), ("mse", "shared"), ("kl", "num_channels")],
)
def test_a_parameter_that_no_config_can_give_is_refused(observer: str, parameter: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown parameter of fake_quant with {observer} '{parameter}'"):
        qc.get_default_qconfig(activation_observer=observer, activation_qkwargs={parameter: 1})


def test_qconfig_takes_factories_and_one_of_two_synonyms() -> None:
    factory = qc.get_default_qconfig().activation
    assert QConfig(output=factory).activation is factory
    with pytest.raises(
        ValueError, match="'activation' and 'output' are two names of one slot: give one of them"
    ):
        QConfig(activation=factory, output=factory)
    with pytest.raises(ValueError, match="'weight' must be a factory such as get_default_qconfig gives"):
        QConfig(weight=factory())


def test_with_args_changes_a_copy() -> None:
    factory = qc.get_default_qconfig().activation
    wide = factory.with_args(dtype="qint16")

    assert (factory.dtype, wide.dtype) == (qc.qint8, qc.qint16)


@pytest.mark.parametrize("name", CURRENT)
def test_a_spec_and_its_qconfig_carry_the_same(name: str) -> None:
    for stage in ("calib", "qat"):
        spec = PRESETS[name].stage(stage)
        assert spec_from_qconfig(qconfig_from_spec(spec)) == spec


def test_every_reference_preset_is_an_attribute() -> None:
    for name, preset in REFERENCE.items():
        if preset.deprecated_for is None:
            assert isinstance(getattr(qc, name), QConfig)


@pytest.mark.parametrize(("old", "new"), DEPRECATED.items())
def test_a_deprecated_name_warns_with_the_new_one_and_is_it(old: str, new: str) -> None:
    with pytest.warns(qc.QuantcfgDeprecationWarning) as caught:
        value = getattr(qc, old)

    assert str(caught[0].message) == f"'{old}' is now called '{new}'"
    assert value == getattr(qc, new)


def test_an_unknown_preset_lists_a_near_one() -> None:
    with pytest.raises(ValueError, match="unknown preset 'w8a88'; did you mean 'w8a8'"):
        preset_qconfig("w8a88")


@pytest.mark.parametrize("name", CURRENT)
def test_every_preset_calibrates_and_trains_the_digits(name: str, digits: Any) -> None:
    model, images, labels = digits
    calib = calibrated(digits, preset_qconfig(name, "calib"))
    training = qc.prepare(model, {"": preset_qconfig(name, "qat")}, example_inputs=(images[:2],), stage="qat")
    qc.load_observer_params(calib, training)

    training.train()
    F.cross_entropy(training(images[:32]), labels[:32]).backward()

    assert all(p.grad.isfinite().all() for p in training.parameters() if p.grad is not None)
    assert training.classifier.weight.grad.abs().sum() > 0
    qc.set_fake_quantize(training.eval(), qc.FakeQuantState.VALIDATION)
    if "4" not in name and "3" not in name and "w2" not in name:
        assert accuracy(training, images, labels) >= accuracy(model, images, labels) - 0.05


@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_observer_calibrates_activations_and_weights(observer: str, digits: Any) -> None:
    model, images, labels = digits
    kwargs = {"fixed_scale": {"scale": 1 / 16}, "clip": {"xmin": -8.0, "xmax": 8.0}}.get(observer, {})
    qconfig = qc.get_default_qconfig(
        activation_observer=observer,
        weight_observer=observer,
        activation_qkwargs=kwargs,
        weight_qkwargs=kwargs,
    )

    prepared = calibrated(digits, qconfig)
    qc.set_fake_quantize(prepared, qc.FakeQuantState.VALIDATION)

    assert accuracy(prepared, images, labels) >= accuracy(model, images, labels) - 0.05
    scales = {name: m.qparams().scale for name, m in qc.fake_quants(prepared).items()}
    assert scales["block1.conv1.weight"].shape == (8,)  # per channel
    assert all((scale > 0).all() for scale in scales.values())


@pytest.mark.parametrize("fake_quant", FAKE_QUANTIZES)
def test_every_fake_quant_learns_the_digits_again(fake_quant: str, digits: Any) -> None:
    _, images, labels = digits
    qconfig = qc.get_default_qconfig(
        fake_quant,
        "lsq" if fake_quant == "lsq" else "fake_quant",
        activation_qkwargs={"dtype": "qint4"},
        weight_qkwargs={"dtype": "qint4"},
    )
    prepared = calibrated(digits, qconfig, stage="qat").train()
    qc.set_fake_quantize(prepared, qc.FakeQuantState.QAT)
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(prepared(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.7 * losses[0]


def test_16_bit_activations_are_closer_than_8_bit_ones(digits: Any) -> None:
    model, images, _ = digits

    def error(**kwargs: Any) -> float:
        prepared = calibrated(digits, qc.get_default_qconfig(activation_qkwargs=kwargs))
        qc.set_fake_quantize(prepared, qc.FakeQuantState.VALIDATION)
        with torch.no_grad():
            return float((prepared(images) - model(images)).abs().mean())

    assert error(dtype="qint16") < 0.8 * error()


def test_the_tail_in_32_bits_has_no_quantizer_on_its_output(digits: Any) -> None:
    model, images, _ = digits
    out = qc.get_default_qconfig(activation_fake_quant=None, activation_observer=None)
    rules = {"": qc.get_default_qconfig(), "module_name": {"classifier": out}}
    prepared = qc.prepare(model, rules, example_inputs=(images[:2],))
    with qc.calibrating(prepared):
        prepared(images)
    qc.set_fake_quantize(prepared, qc.FakeQuantState.VALIDATION)

    assert "classifier.weight" in qc.fake_quants(prepared)
    assert "classifier.output" not in qc.fake_quants(prepared)
    assert len(prepared(images).unique()) > 256


def test_nothing_in_the_presets_warns_when_the_module_is_imported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(DigitsNet(), nn.Module)
        assert all(
            isinstance(getattr(qc, name), QConfig)
            for name in qc.__all__
            if name.startswith("default_") and name.endswith("_qconfig")
        )


@pytest.mark.parametrize("form", [list, dict])
def test_the_digits_follow_both_forms_of_the_dict_and_the_rising_priority(form: type, digits: Any) -> None:
    model, images, _ = digits
    wide = qc.get_default_qconfig(activation_qkwargs={"dtype": "qint16"})
    narrow = qc.get_default_qconfig(activation_qkwargs={"dtype": "qint4"})
    model = DigitsNet()
    model.load_state_dict(digits[0].state_dict())
    model.block2.qconfig = wide
    prepared = qc.prepare_qat_fx(
        model.eval(),
        {
            "": qc.get_default_qconfig(),
            "module_type": form([(nn.Linear, narrow), (nn.Conv2d, narrow)]),
            "module_name": form([("block1", wide), ("block2", narrow), ("classifier", None)]),
        },
        example_inputs=(images[:2],),
    )
    dtypes = {name: module.dtype.name for name, module in qc.fake_quants(prepared).items()}

    assert dtypes["cat_0.output"] == "qint8"  # global
    assert dtypes["stem.2.output"] == "qint4"  # the type of the convolution in its chain
    assert dtypes["block1.relu_0.output"] == "qint16"  # a name beats a type
    assert dtypes["block2.relu_0.output"] == "qint16"  # the attribute beats the name
    assert not any(name.startswith("classifier") for name in dtypes)  # None is float


def test_states_and_ranges_move_from_calibration_to_training_on_the_digits(digits: Any) -> None:
    model, images, labels = digits
    calib = calibrated(digits, preset_qconfig("w8a8", "calib"))
    qconfig = preset_qconfig("w8a8_fixed_act", "qat")
    training = qc.prepare_qat_fx(model, {"": qconfig}, example_inputs=(images[:2],))

    report = qc.load_observer_params(calib, training)
    assert len(report.loaded) == len(qc.fake_quants(training))

    qc.set_fake_quantize(calib, qc.FakeQuantState.VALIDATION)
    qc.set_fake_quantize(training, qc.FakeQuantState.VALIDATION)
    torch.testing.assert_close(training.eval()(images), calib(images), rtol=0, atol=0)
    for state in qc.FakeQuantState:
        qc.set_fake_quantize(training, state)
        assert qc.state_of(training) is state
        assert accuracy(training, images, labels) > 0.9
