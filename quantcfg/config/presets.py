"""Every preset qconfig by name: the short stage-aware ones and all names of the reference toolkit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from quantcfg.config.spec import Field, QConfigSpec, Scalar, make_spec

Values = dict[str, Scalar]
STAGES = ("calib", "qat")


@dataclass(frozen=True, slots=True)
class Preset:
    """A named qconfig; ``deprecated_for`` is the name to use instead."""

    name: str
    values: tuple[Values, Values] = field(repr=False)
    doc: str
    deprecated_for: str | None = None

    @property
    def calib(self) -> QConfigSpec:
        """The qconfig while calibrating."""
        return _spec(self.name, 0)

    @property
    def qat(self) -> QConfigSpec:
        """The qconfig while training."""
        return _spec(self.name, 1)

    def stage(self, stage: str) -> QConfigSpec:
        """The qconfig in ``"calib"`` or ``"qat"``."""
        return self.calib if stage == "calib" else self.qat


ACTIVATION_MSE: Values = {"activation_observer": "mse"}
ACTIVATION_FROZEN: Values = {"activation_qkwargs.averaging_constant": 0.0}
ACTIVATION_PACT: Values = {"activation_fake_quant": "pact"}
ACTIVATION_FLOAT: Values = {"activation_fake_quant": None, "activation_observer": None}
WEIGHT_MSE: Values = {"weight_observer": "mse"}
WEIGHT_CURRENT: Values = {"weight_qkwargs.averaging_constant": 1.0}
LSQ_QKWARGS: Values = {"use_grad_scaling": True, "averaging_constant": 1.0}
PER_CHANNEL: Values = {"weight_qkwargs.qscheme": "per_channel_symmetric", "weight_qkwargs.ch_axis": 0}


def _dtypes(weight_bits: int, activation_bits: int) -> Values:
    values: Values = {}
    if weight_bits != 8:
        values["weight_qkwargs.dtype"] = f"qint{weight_bits}"
    if activation_bits == 32:
        values |= ACTIVATION_FLOAT
    elif activation_bits != 8:
        values["activation_qkwargs.dtype"] = f"qint{activation_bits}"
    return values


def _lsq(slot: str) -> Values:
    return {f"{slot}_fake_quant": "lsq"} | {
        f"{slot}_qkwargs.{key}": value for key, value in LSQ_QKWARGS.items()
    }


@cache
def _spec(name: str, stage: int) -> QConfigSpec:
    """Made when it is asked for: a config uses few of the presets."""
    preset = PRESETS[name]
    label = preset.deprecated_for or name
    values = preset.values[stage].items()
    return make_spec({key: Field(value, f"preset {label}") for key, value in values}, name=label)


SHORT_BITS = ((8, 8), (8, 16), (8, 32), (16, 16), (4, 8), (4, 32), (4, 4), (3, 3), (2, 8))


def _short_presets() -> Iterator[Preset]:
    for weight_bits, activation_bits in SHORT_BITS:
        yield from _short_family(weight_bits, activation_bits)


def _short_family(weight_bits: int, activation_bits: int) -> Iterator[Preset]:
    """Calibration searches the range by its error; training starts from there in the way the name says."""
    name, dtypes = f"w{weight_bits}a{activation_bits}", _dtypes(weight_bits, activation_bits)
    has_output = activation_bits != 32
    what = f"{weight_bits}-bit weights per channel, " + (
        f"{activation_bits}-bit activations" if has_output else "output left in 32 bits"
    )
    calib = dtypes | (ACTIVATION_MSE if has_output else {}) | (WEIGHT_MSE if weight_bits < 8 else {})
    lsq = _lsq("weight") | (_lsq("activation") if has_output else {})
    yield Preset(name, (calib, dtypes | WEIGHT_CURRENT), what)
    yield Preset(f"{name}_lsq", (calib, dtypes | lsq), f"{what}; QAT learns the scales")
    if has_output:
        pact = dtypes | WEIGHT_CURRENT | ACTIVATION_PACT
        frozen = dtypes | WEIGHT_CURRENT | ACTIVATION_FROZEN
        yield Preset(f"{name}_pact", (calib, pact), f"{what}; QAT learns where to clip activations")
        yield Preset(f"{name}_fixed_act", (calib, frozen), f"{what}; QAT keeps the calibrated activations")


ACTIVATION_16BIT: Values = {"activation_qkwargs.dtype": "qint16"}
LSQ_BOTH = _lsq("activation") | _lsq("weight") | PER_CHANNEL
PACT_BOTH: Values = {**ACTIVATION_PACT, "weight_fake_quant": "pact", **PER_CHANNEL}
WEIGHT_4BIT: Values = {"weight_qkwargs.dtype": "qint4"}
PER_CHANNEL_ACTIVATION: Values = {
    "activation_qkwargs.qscheme": "per_channel_symmetric",
    "activation_qkwargs.ch_axis": 1,
}
PERCENTILE: Values = {
    "activation_observer": "percentile",
    "activation_qkwargs.percentile": 99.99,
    "activation_qkwargs.bins": 2048,
}

REFERENCE: tuple[tuple[str, str, Values], ...] = (
    ("default_calib_8bit_fake_quant_qconfig", "calibration", ACTIVATION_MSE),
    ("default_qat_8bit_fake_quant_qconfig", "QAT, scales move", {}),
    ("default_qat_8bit_fixed_act_fake_quant_qconfig", "QAT, activation scales frozen", ACTIVATION_FROZEN),
    (
        "default_calib_8bit_weight_16bit_act_fake_quant_qconfig",
        "calibration of sensitive ops",
        ACTIVATION_MSE | ACTIVATION_16BIT,
    ),
    ("default_qat_8bit_weight_16bit_act_fake_quant_qconfig", "QAT of sensitive ops", ACTIVATION_16BIT),
    (
        "default_qat_8bit_weight_16bit_fixed_act_fake_quant_qconfig",
        "QAT of sensitive ops, activation scales frozen",
        ACTIVATION_16BIT | ACTIVATION_FROZEN,
    ),
    ("default_qat_8bit_weight_32bit_out_fake_quant_qconfig", "output layer of a network", ACTIVATION_FLOAT),
    ("default_calib_8bit_weight_32bit_out_fake_quant_qconfig", "output layer of a network", ACTIVATION_FLOAT),
    ("default_qat_8bit_pact_quant_qconfig", "QAT, learned clipping", PACT_BOTH),
    ("default_qat_16bit_pact_quant_qconfig", "QAT, learned clipping, 16-bit", PACT_BOTH | ACTIVATION_16BIT),
    ("default_qat_8bit_lsq_quant_qconfig", "QAT, learned scales", LSQ_BOTH),
    ("default_qat_16bit_lsq_quant_qconfig", "QAT, learned scales, 16-bit", LSQ_BOTH | ACTIVATION_16BIT),
    ("default_qat_8bit_qconfig", "QAT, earlier generation", {}),
    (
        "default_qat_4bit_qconfig",
        "QAT in 4 bits, earlier generation",
        WEIGHT_4BIT | {"activation_qkwargs.dtype": "qint4"},
    ),
    ("default_qat_out_8bit_qconfig", "output layer, earlier generation", ACTIVATION_FLOAT),
    ("default_qat_out_4bit_qconfig", "output layer in 4 bits", ACTIVATION_FLOAT | WEIGHT_4BIT),
    ("per_channel_qat_8bit_qconfig", "QAT, activations per channel on axis 1", PER_CHANNEL_ACTIVATION),
    ("default_calib_qconfig", "calibration by percentile, earlier generation", PERCENTILE),
)

DEPRECATED = {
    "default_qat_out_8bit_fake_quant_qconfig": "default_qat_8bit_weight_32bit_out_fake_quant_qconfig",
    "default_calib_out_8bit_fake_quant_qconfig": "default_calib_8bit_weight_32bit_out_fake_quant_qconfig",
    "default_qat_16bit_fake_quant_qconfig": "default_qat_8bit_weight_16bit_act_fake_quant_qconfig",
    "default_calib_16bit_fake_quant_qconfig": "default_calib_8bit_weight_16bit_act_fake_quant_qconfig",
}


def _deprecated_presets(presets: Mapping[str, Preset]) -> Iterator[Preset]:
    for old, new in DEPRECATED.items():
        yield Preset(old, presets[new].values, f"now called {new}", deprecated_for=new)


def _all_presets() -> dict[str, Preset]:
    presets = {preset.name: preset for preset in _short_presets()}
    presets |= {name: Preset(name, (values, values), doc) for name, doc, values in REFERENCE}
    return presets | {preset.name: preset for preset in _deprecated_presets(presets)}


PRESETS: dict[str, Preset] = _all_presets()
"""Every preset by name. Those of the reference toolkit mean the same in both stages."""
