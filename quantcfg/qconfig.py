"""The bridge between config and numbers: qconfigs as factories of fake quantize modules.

Nothing else knows both sides. A `QConfigSpec` (names and scalars, from a file) becomes a `QConfig`
(factories) and back; every ``default_*_qconfig`` of the reference toolkit is an attribute of this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from quantcfg.config.kinds import accepted, fake_quants
from quantcfg.config.presets import PRESETS
from quantcfg.config.spec import FakeQuantSpec, QConfigSpec
from quantcfg.config.suggest import nearest
from quantcfg.errors import QuantcfgDeprecationWarning, warn
from quantcfg.numeric.dtypes import QuantDType, as_dtype
from quantcfg.numeric.fake_quantize import FAKE_QUANTIZES
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.numeric.observers import OBSERVERS


@dataclass(frozen=True, slots=True)
class FakeQuantFactory:
    """Builds the fake quantize modules of one slot; equal factories build equal modules.

    ``kwargs`` are the parameters of the fake quantize and of its observer, sorted by name.
    """

    fake_quant: str
    observer: str
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __call__(
        self, *, num_channels: int = 1, ch_axis: int | None = None, name: str = ""
    ) -> FakeQuantizeBase:
        """Make one module, with its buffers in their final shape.

        Args:
            num_channels: length of the channel axis; not looked at per tensor.
            ch_axis: the axis to use instead of the one given, where the op decides it.
            name: the site's name, for error messages.
        """
        names = fake_quants()[self.fake_quant]
        own = {key: value for key, value in self.kwargs if key in names}
        rest = {key: value for key, value in self.kwargs if key not in own}
        if self.per_channel:
            rest |= {"num_channels": num_channels}
            if ch_axis is not None:
                rest["ch_axis"] = ch_axis
        module = FAKE_QUANTIZES[self.fake_quant](OBSERVERS[self.observer](**rest), **own)
        module.name = name
        return module

    def with_args(self, **kwargs: Any) -> FakeQuantFactory:
        """The same factory with other or further parameters."""
        return _factory(self.fake_quant, self.observer, dict(self.kwargs) | kwargs)

    @property
    def dtype(self) -> QuantDType:
        """The quantized dtype."""
        return as_dtype(dict(self.kwargs).get("dtype", "qint8"))

    @property
    def per_channel(self) -> bool:
        """Whether each channel has its own scale."""
        return str(dict(self.kwargs).get("qscheme", "")).startswith("per_channel")

    @property
    def ch_axis(self) -> int:
        """The channel axis given, -1 per tensor."""
        return int(dict(self.kwargs).get("ch_axis", -1))

    def per_tensor(self) -> FakeQuantFactory:
        """The same factory with one scale for the whole tensor."""
        kwargs = {key: value for key, value in self.kwargs if key != "ch_axis"}
        if "qscheme" in kwargs:
            kwargs["qscheme"] = str(kwargs["qscheme"]).replace("per_channel", "per_tensor")
        return _factory(self.fake_quant, self.observer, kwargs)


@dataclass(frozen=True, slots=True, init=False)
class QConfig:
    """How one op is quantized: a factory for its output (``activation``) and one for its weights.

    None in a slot means no fake quantize there: ``activation=None`` is the 32-bit output. ``output`` is
    another name for ``activation``; ``input`` is used for inputs that arrive in float, and is ``activation``
    when None.

    Raises:
        ValueError: both ``activation`` and ``output`` are given, or a slot holds a module instead of a
        factory.

    Example:
        >>> fine = qc.get_default_qconfig(activation_qkwargs={"dtype": "qint16"})
        >>> qc.QConfig(output=fine.activation, weight=fine.weight) == fine
        True
    """

    activation: FakeQuantFactory | None
    weight: FakeQuantFactory | None
    input: FakeQuantFactory | None

    def __init__(
        self,
        activation: FakeQuantFactory | None = None,
        weight: FakeQuantFactory | None = None,
        input: FakeQuantFactory | None = None,
        output: FakeQuantFactory | None = None,
    ) -> None:
        if activation is not None and output is not None:
            raise ValueError("'activation' and 'output' are two names of one slot: give one of them")
        slots: dict[str, Any] = {"activation": activation or output, "weight": weight, "input": input}
        for name, factory in slots.items():
            if factory is not None and not isinstance(factory, FakeQuantFactory):
                got = type(factory).__name__
                raise ValueError(f"'{name}' must be a factory such as get_default_qconfig gives (got {got})")
            object.__setattr__(self, name, factory)

    @property
    def output(self) -> FakeQuantFactory | None:
        """Another name for ``activation``."""
        return self.activation


def get_default_qconfig(  # noqa: PLR0917  the reference's signature
    activation_fake_quant: str | None = "fake_quant",
    weight_fake_quant: str | None = "fake_quant",
    activation_observer: str | None = "min_max",
    weight_observer: str | None = "min_max",
    activation_qkwargs: Mapping[str, Any] | None = None,
    weight_qkwargs: Mapping[str, Any] | None = None,
) -> QConfig:
    """Put a qconfig together from the names of its parts.

    A fake quant of None leaves its slot out, and its observer is not looked at. Weights without ``qscheme``
    are per channel symmetric, and then without ``ch_axis`` use axis 0. The dicts are not changed.

    Args:
        activation_fake_quant: ``fake_quant``, ``lsq``, ``pact`` or None (32-bit output).
        weight_fake_quant: the same for weights.
        activation_observer: ``min_max``, ``fixed_scale``, ``clip``, ``percentile``, ``clip_std``, ``mse``,
            ``kl`` or ``mix``.
        weight_observer: the same for weights.
        activation_qkwargs: parameters of the fake quant and of the observer, by name.
        weight_qkwargs: the same for weights.

    Raises:
        ValueError: an unknown fake quant, observer or parameter, and the message lists what there is; or a
            value that one of them does not take.

    Example:
        >>> qconfig = get_default_qconfig(activation_observer="mse", activation_qkwargs={"dtype": "qint16"})
        >>> qconfig.activation.dtype, dict(qconfig.weight.kwargs)["qscheme"]
        (qint16, 'per_channel_symmetric')
    """
    activation_kwargs = _as_dict("activation_qkwargs", activation_qkwargs)
    weight_kwargs = _as_dict("weight_qkwargs", weight_qkwargs)
    weight_kwargs.setdefault("qscheme", "per_channel_symmetric")
    if _plain(weight_kwargs["qscheme"]) == "per_channel_symmetric":
        weight_kwargs.setdefault("ch_axis", 0)
    return QConfig(
        activation=_slot("activation", activation_fake_quant, activation_observer, activation_kwargs),
        weight=_slot("weight", weight_fake_quant, weight_observer, weight_kwargs),
    )


def _as_dict(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"'{name}' must be a dict of parameters by name (got {given!r})")
    return dict(given or {})


def _slot(
    slot: str, fake_quant: str | None, observer: str | None, kwargs: dict[str, Any]
) -> FakeQuantFactory | None:
    if fake_quant is None:
        return None
    factory = _factory(fake_quant, observer, kwargs)
    try:
        factory()  # here a wrong value can still be told from a wrong model
    except ValueError as error:
        raise ValueError(f"{slot}_qkwargs: {error}") from None
    except TypeError as error:
        raise ValueError(f"{slot}_qkwargs: a value in {kwargs} has another type ({error})") from None
    return factory


def _factory(fake_quant: str, observer: str | None, kwargs: Mapping[str, Any]) -> FakeQuantFactory:
    kwargs = {key: _plain(value) for key, value in kwargs.items()}
    observer = kwargs.pop("observer", observer)  # parameters are applied last, so they win over the name
    _known(fake_quant, FAKE_QUANTIZES, "fake quant")
    _known(observer, OBSERVERS, "observer")
    allowed = accepted(observer, fake_quant)
    for key in kwargs:
        _known(key, allowed, f"parameter of {fake_quant} with {observer}")
    return FakeQuantFactory(fake_quant, observer, tuple(sorted(kwargs.items())))


def _plain(value: Any) -> Any:
    """Names instead of objects: ``"per_tensor_affine"`` for torch's, ``"mse"`` for a class."""
    if isinstance(value, torch.qscheme):
        return str(value).removeprefix("torch.")
    if isinstance(value, QuantDType):
        return value.name
    if isinstance(value, type):
        return next((name for name, cls in OBSERVERS.items() if cls is value), value.__name__)
    return value


def _known(name: Any, table: Mapping[str, Any], what: str) -> None:
    if not isinstance(name, str):
        raise ValueError(f"not the name of any {what}: {name!r}. Known: {', '.join(table)}")
    if name not in table:
        close = nearest(name, table)
        hint = f"; did you mean '{close}'?" if close else "."
        raise ValueError(f"unknown {what} '{name}'{hint} Known: {', '.join(table)}")


def qconfig_from_spec(spec: QConfigSpec) -> QConfig:
    """Turn the resolved names of a config into factories."""
    return QConfig(*(_spec_factory(slot) for slot in (spec.activation, spec.weight, spec.input)))


def _spec_factory(spec: FakeQuantSpec | None) -> FakeQuantFactory | None:
    return None if spec is None else _factory(spec.fake_quant, spec.observer, spec.kwargs)


def spec_from_qconfig(qconfig: QConfig, name: str = "custom") -> QConfigSpec:
    """The names behind a qconfig, as rules hold them."""
    return QConfigSpec(
        _factory_spec(qconfig.activation),
        _factory_spec(qconfig.weight),
        name,
        input=_factory_spec(qconfig.input),
    )


def _factory_spec(factory: FakeQuantFactory | None) -> FakeQuantSpec | None:
    return None if factory is None else FakeQuantSpec(factory.fake_quant, factory.observer, factory.kwargs)


def preset_qconfig(name: str, stage: str = "calib") -> QConfig:
    """The qconfig of a preset in a stage, ``calib`` or ``qat``.

    Raises:
        ValueError: there is no such preset.

    Example:
        >>> qc.preset_qconfig("w8a8_lsq", "qat").activation.fake_quant
        'lsq'
    """
    _known(name, PRESETS, "preset")
    preset = PRESETS[name]
    if preset.deprecated_for:
        warn(f"'{name}' is now called '{preset.deprecated_for}'", QuantcfgDeprecationWarning)
    return qconfig_from_spec(preset.stage(stage))


def __getattr__(name: str) -> QConfig:
    # The reference's presets are attributes: quantcfg.default_qat_8bit_fake_quant_qconfig.
    if name in PRESETS and name.endswith("_qconfig"):
        return preset_qconfig(name)
    raise AttributeError(f"module 'quantcfg.qconfig' has no attribute '{name}'")
