"""The resolved qconfig of one op as plain values: what `get_default_qconfig` is called with, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantcfg.errors import Place

Scalar = str | int | float | bool | None
Origin = Place | str
"""Where a field comes from: a place in a file, ``"preset w8a8"`` or ``"default"``."""

DEFAULT = "default"
SLOTS = ("activation", "weight")
QCONFIG_DEFAULTS: dict[str, Scalar] = {
    "activation_fake_quant": "fake_quant",
    "activation_observer": "min_max",
    "weight_fake_quant": "fake_quant",
    "weight_observer": "min_max",
}
"""The defaults of `get_default_qconfig`; both ``*_qkwargs`` are empty by default."""
QSCHEME_DEFAULTS = {"activation": "per_tensor_symmetric", "weight": "per_channel_symmetric"}
"""The qscheme of a slot that names none."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a qconfig and its origin."""

    value: Scalar
    origin: Origin


Fields = Mapping[str, Field]
"""A qconfig being put together: ``activation_observer`` or ``weight_qkwargs.dtype`` -> `Field`."""


@dataclass(frozen=True, slots=True)
class FakeQuantSpec:
    """One slot of a qconfig: the kind of fake quantize, of observer, and their parameters, sorted by name."""

    fake_quant: str
    observer: str
    qkwargs: tuple[tuple[str, Scalar], ...] = ()

    @property
    def kwargs(self) -> dict[str, Scalar]:
        """The parameters as a new dict; ``dtype`` and ``qscheme`` are names."""
        return dict(self.qkwargs)

    @property
    def dtype(self) -> str:
        """Name of the quantized dtype."""
        return str(self.kwargs.get("dtype", "qint8"))


@dataclass(frozen=True, slots=True)
class QConfigSpec:
    """What one op gets. A slot that is None is not quantized: ``activation=None`` is the 32-bit output.

    ``name`` is the label that the plan shows; ``origins`` says where each field comes from. Both describe
    and take no part in equality, so two specs are equal when they quantize alike.
    """

    activation: FakeQuantSpec | None
    weight: FakeQuantSpec | None
    name: str = field(default="custom", compare=False)
    origins: tuple[tuple[str, Origin], ...] = field(default=(), compare=False)
    input: FakeQuantSpec | None = None  # for inputs that arrive in float; None: as the activation

    @property
    def slots(self) -> dict[str, FakeQuantSpec | None]:
        """The two slots by name."""
        return {"activation": self.activation, "weight": self.weight}

    def values(self) -> dict[str, Scalar]:
        """Every field by the name that a config gives it, defaults included."""
        values: dict[str, Scalar] = {}
        for slot, item in self.slots.items():
            values[f"{slot}_fake_quant"] = item.fake_quant if item else None
            if item:
                values[f"{slot}_observer"] = item.observer
                values |= {f"{slot}_qkwargs.{name}": value for name, value in item.qkwargs}
        return values

    def fields(self) -> dict[str, Field]:
        """The fields that are not defaults, with their origins: `make_spec` gives the same spec back."""
        origins = dict(self.origins)
        explicit: dict[str, Field] = {}
        for name, value in self.values().items():
            if origins.get(name, DEFAULT) != DEFAULT:
                explicit[name] = Field(value, origins[name])
        return explicit


def make_spec(fields: Fields, *, name: str = "custom") -> QConfigSpec:
    """Fill the defaults of `get_default_qconfig` in and keep where each field came from.

    A weight without ``qscheme`` is per channel symmetric, and then without ``ch_axis`` it is axis 0.
    """
    filled = {key: Field(value, DEFAULT) for key, value in QCONFIG_DEFAULTS.items()} | dict(fields)
    filled |= _weight_defaults(filled)
    return QConfigSpec(
        activation=_slot(filled, "activation"),
        weight=_slot(filled, "weight"),
        name=name,
        origins=tuple(sorted((key, item.origin) for key, item in filled.items())),
    )


def slot_kwargs(fields: Fields, slot: str) -> dict[str, Field]:
    """The parameters of one slot by their own names."""
    prefix = f"{slot}_qkwargs."
    return {name.removeprefix(prefix): item for name, item in fields.items() if name.startswith(prefix)}


def _weight_defaults(fields: Fields) -> dict[str, Field]:
    if fields["weight_fake_quant"].value is None:
        return {}
    kwargs = slot_kwargs(fields, "weight")
    qscheme = kwargs.get("qscheme", Field(QSCHEME_DEFAULTS["weight"], DEFAULT))
    defaults = {"weight_qkwargs.qscheme": qscheme}
    if qscheme.value == "per_channel_symmetric":
        defaults["weight_qkwargs.ch_axis"] = kwargs.get("ch_axis", Field(0, DEFAULT))
    return defaults


def _slot(fields: Fields, slot: str) -> FakeQuantSpec | None:
    fake_quant = fields[f"{slot}_fake_quant"].value
    if fake_quant is None:
        return None
    kwargs = sorted((name, item.value) for name, item in slot_kwargs(fields, slot).items())
    return FakeQuantSpec(str(fake_quant), str(fields[f"{slot}_observer"].value), tuple(kwargs))
