"""Whether the parameters of a qconfig fit its observer and fake quantize, and one another."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import ValidationError

from quantcfg.config.collect import Findings
from quantcfg.config.compiled import parameter_validator
from quantcfg.config.foreign import native
from quantcfg.config.kinds import accepted, fake_quants, observers, owners
from quantcfg.config.nodes import NOWHERE, Leaf, describe, shortened
from quantcfg.config.overlay import kind
from quantcfg.config.spec import QSCHEME_DEFAULTS, SLOTS, Field, Fields, slot_kwargs
from quantcfg.config.suggest import listing, nearest
from quantcfg.config.translate import BOUNDS, EXPECTED, KINDS, choices_of, type_advice
from quantcfg.errors import Place


@dataclass(slots=True)
class SlotChecker:
    """Checks qconfigs after presets and names are resolved; points at what was written in the file."""

    findings: Findings
    key_places: dict[Place, Place] = field(default_factory=dict)

    def check(self, fields: Fields, changes: Fields, *, inherits: bool, unknown: Container[str] = ()) -> bool:
        """Whether a qconfig is good, as far as its observers are known.

        They are not where it inherits, nor where their name is among the ``unknown`` keys.
        """
        before = len(self.findings.errors)
        for slot in SLOTS:
            inherited = inherits and f"{slot}_observer" not in fields
            if inherited or f"{slot}_observer" in unknown or f"{slot}_fake_quant" in unknown:
                self._types_only(slot, changes)
            else:
                self._slot(slot, fields, changes)
        return len(self.findings.errors) == before

    def conflict(self, summary: str, item: Field, advice: str, *, at_key: bool = False) -> None:
        """Report a parameter that another one contradicts, at its value or ``at_key``."""
        place = self._key_place(item) if at_key else _origin(item)
        self.findings.error("QC126", summary, place, help=advice)

    def _slot(self, slot: str, fields: Fields, changes: Fields) -> None:
        fake_quant, observer = kind(fields, f"{slot}_fake_quant"), kind(fields, f"{slot}_observer")
        kwargs = slot_kwargs(fields, slot)
        if fake_quant is None:
            self._without_effect(slot, changes)
            return
        if observer is None:
            place = _origin(fields.get(f"{slot}_observer"))
            summary = f"`{slot}_observer` is null but `{slot}_fake_quant` is {fake_quant}"
            advice = f"name an observer, or set `{slot}_fake_quant: null` to leave it in float"
            self.findings.error("QC126", summary, place, help=advice)
            return
        known = accepted(observer, fake_quant)
        good = {name: item for name, item in kwargs.items() if self._known(name, item, slot, observer, known)}
        good = {name: item for name, item in good.items() if self._typed(name, item, slot, known[name])}
        self._together(slot, observer, fake_quant, good)

    def _types_only(self, slot: str, changes: Fields) -> None:
        for name, item in slot_kwargs(changes, slot).items():
            having = owners(name)
            if having:
                self._typed(name, item, slot, having[0])
            else:
                self._known(name, item, slot, "", {})

    def _without_effect(self, slot: str, changes: Fields) -> None:
        for name, item in slot_kwargs(changes, slot).items():
            self.findings.error(
                "QC126",
                f"`{slot}_qkwargs.{name}` has no effect: `{slot}_fake_quant` is null",
                self._key_place(item),
                help=f"remove it, or name a fake quantize in `{slot}_fake_quant`",
            )

    def _known(self, name: str, item: Field, slot: str, observer: str, known: Mapping[str, str]) -> bool:
        if name in known:
            return True
        having = owners(name)
        near = nearest(name, known or _every_parameter())
        if having:
            code, label = "QC123", f"a parameter of {listing(having)}"
            advice = f"remove it, or write `{slot}_observer: {having[0]}`"
            if having[0] not in observers():
                advice = f"remove it, or write `{slot}_fake_quant: {having[0]}`"
        else:
            code, label = "QC124", f"did you mean `{near}`?" if near else "not a parameter"
            advice = f"write `{near}`" if near else "remove it"
        of = f" of the observer `{observer}`" if observer else ""
        self.findings.error(
            code,
            f"`{shortened(name)}` is not a parameter{of}",
            self._key_place(item),
            label=label,
            notes=(f"its parameters: {listing(known, 16)}",) if known else (),
            help=advice,
            cause=(slot, having[0], _line(item)) if having else None,
        )
        return False

    def _typed(self, name: str, item: Field, slot: str, kind: str) -> bool:
        try:
            parameter_validator(kind, name).validate_python(item.value)
        except ValidationError as error:
            self._bad_value(f"{slot}_qkwargs.{name}", item, error.errors(include_url=False)[0])
            return False
        return True

    def _bad_value(self, path: str, item: Field, error: Any) -> None:
        place = _origin(item)
        leaf = Leaf(item.value, place or NOWHERE)
        name = path.partition(".")[2]
        if error["type"] == "literal_error":
            self._bad_choice(path, leaf, choices_of(error), KINDS.get(name, ("QC104", name)))
        elif error["type"] in BOUNDS:
            bound, word = BOUNDS[error["type"]]
            limit = error["ctx"][bound]
            summary = f"`{path}` must be {word} {limit:g}, got {item.value}"
            self.findings.error("QC105", summary, place, label=f"must be {word} {limit:g}")
        else:
            expected = EXPECTED.get(error["type"], error["msg"])
            summary = f"`{path}`: expected {expected}, got {describe(leaf)}"
            advice = type_advice(expected, leaf)
            self.findings.error("QC103", summary, place, label=f"expected {expected}", help=advice)

    def _bad_choice(self, path: str, leaf: Leaf, choices: list[str], known_as: tuple[str, str]) -> None:
        code, what = known_as
        if not isinstance(leaf.value, str):
            summary = f"`{path}`: expected a text, got {describe(leaf)}"
            self.findings.error("QC103", summary, leaf.place, label="expected a text")
            return
        near = native(leaf.value, choices) or nearest(leaf.value, choices)
        self.findings.error(
            code,
            f"unknown {what} `{shortened(leaf.value)}`",
            leaf.place,
            label=f"did you mean `{near}`?" if near else "not one of those allowed",
            notes=(f"allowed: {_choices(choices)}",),
            help=f"write `{near}`" if near else "",
        )

    def _together(self, slot: str, observer: str, fake_quant: str, kwargs: Fields) -> None:
        """What two parameters say about each other, each at the one that was written last in the reading."""
        self._bounds(slot, kwargs)
        self._axis(slot, kwargs)
        self._affine(slot, fake_quant, kwargs)
        if fake_quant != "pact":
            self._unsigned(slot, kwargs)
        self._observer(slot, observer, kwargs)

    def _bounds(self, slot: str, kwargs: Fields) -> None:
        low, high = kwargs.get("quant_min"), kwargs.get("quant_max")
        if low is None and high is None:
            return
        if low is None or high is None:
            given, missing = ("quant_max", "quant_min") if low is None else ("quant_min", "quant_max")
            summary = f"`{slot}_qkwargs.{given}` has no effect without `{missing}`"
            self.conflict(summary, kwargs[given], f"add `{missing}`, or remove `{given}`")
            return
        smallest, largest = dtype_bounds(_text(kwargs, "dtype", "qint8"))
        quant_min, quant_max = _number(low), _number(high)
        if not smallest <= quant_min <= 0 <= quant_max <= largest or quant_min == quant_max:
            summary = f"{quant_min:g} to {quant_max:g} is not a range around 0 inside {smallest} to {largest}"
            summary += f" ({_text(kwargs, 'dtype', 'qint8')})"
            self.conflict(summary, low if quant_min < smallest or quant_min > 0 else high, "")

    def _axis(self, slot: str, kwargs: Fields) -> None:
        qscheme, axis = _qscheme(slot, kwargs), kwargs.get("ch_axis")
        if axis is not None and axis.value is not None and qscheme.startswith("per_tensor"):
            advice = f"remove it, or write `qscheme: {qscheme.replace('per_tensor', 'per_channel')}`"
            summary = f"`{slot}_qkwargs.ch_axis` has no meaning with the qscheme {qscheme}"
            self.conflict(summary, axis, advice, at_key=True)
        elif axis is None and qscheme.startswith("per_channel") and slot == "activation":
            summary = f"the qscheme {qscheme} of an activation needs a `ch_axis`"
            self.conflict(
                summary, kwargs["qscheme"], "add `ch_axis: 1` for images with their channels on axis 1"
            )

    def _affine(self, slot: str, fake_quant: str, kwargs: Fields) -> None:
        qscheme = kwargs.get("qscheme")
        if fake_quant == "pact" and qscheme and str(qscheme.value).endswith("affine"):
            advice = f"write `qscheme: {str(qscheme.value).replace('affine', 'symmetric')}`"
            summary = f"`{slot}_fake_quant: pact` clips symmetrically and has no affine form"
            self.conflict(summary, qscheme, advice)
        dtype = kwargs.get("dtype")
        if fake_quant == "pact" and dtype and str(dtype.value).startswith("qu"):
            summary = f"`{slot}_fake_quant: pact` clips on both sides of 0 and has no unsigned form"
            self.conflict(summary, dtype, f"write `dtype: {str(dtype.value).replace('qu', 'q')}`")

    def _unsigned(self, slot: str, kwargs: Fields) -> None:
        dtype, qscheme = kwargs.get("dtype"), _qscheme(slot, kwargs)
        # A scale that is written out, and not derived from a range, may use the whole grid.
        if dtype is None or not str(dtype.value).startswith("qu") or "affine" in qscheme or "scale" in kwargs:
            return
        self.findings.warning(
            "QC133",
            f"{dtype.value} with the symmetric qscheme of `{slot}_qkwargs` clips all below 0 and leaves half "
            "of its integers unused",
            _origin(dtype),
            help=f"write `qscheme: {qscheme.replace('symmetric', 'affine')}`, "
            f"or `dtype: {str(dtype.value).replace('qu', 'q')}`",
        )

    def _observer(self, slot: str, observer: str, kwargs: Fields) -> None:
        check = OBSERVER_CHECKS.get(observer)
        if check is not None:
            check(self, slot, kwargs)

    def _key_place(self, item: Field) -> Place | None:
        place = _origin(item)
        return self.key_places.get(place, place) if place else None


def _kl(checker: SlotChecker, slot: str, kwargs: Fields) -> None:
    dtype = _text(kwargs, "dtype", "qint8")
    bins = int(_number(kwargs["bins"])) if "bins" in kwargs else 512
    levels = 1 << dtype_bits(dtype)
    if levels > bins:
        summary = f"`{slot}_observer: kl` cannot work with {dtype}"
        summary += f": {bins} bins do not tell {levels} levels apart, so every range looks perfect"
        culprit = kwargs.get("dtype") or kwargs["bins"]
        checker.conflict(summary, culprit, "use the observer mse, or min_max")


def _clip(checker: SlotChecker, slot: str, kwargs: Fields) -> None:
    low, high = kwargs.get("xmin"), kwargs.get("xmax")
    xmin, xmax = _number(low) if low else -1.0, _number(high) if high else 1.0
    if xmin > xmax:
        summary = f"`{slot}_qkwargs`: xmin {xmin:g} is above xmax {xmax:g}"
        checker.conflict(summary, low or kwargs["xmax"], "")


def _fixed_scale(checker: SlotChecker, slot: str, kwargs: Fields) -> None:
    if kwargs.keys() >= {"scale", "threshold"}:
        summary = f"`{slot}_qkwargs`: `scale` and `threshold` both fix the scale"
        checker.conflict(summary, kwargs["threshold"], "keep one of them", at_key=True)
    zero_point = kwargs.get("zero_point")
    if zero_point and zero_point.value and _qscheme(slot, kwargs).endswith("symmetric"):
        summary = f"`{slot}_qkwargs.zero_point` must be 0 with a symmetric qscheme"
        checker.conflict(summary, zero_point, "remove it, or write `qscheme: per_tensor_affine`")


def _percentile(checker: SlotChecker, slot: str, kwargs: Fields) -> None:
    item = kwargs.get("percentile")
    if item is None or _number(item) > 1:
        return
    share, percent = _number(item), round(_number(item) * 100, 9)
    checker.findings.warning(
        "QC134",
        f"`{slot}_qkwargs.percentile` is in percent: {share:g} keeps {share:g} % of the values",
        _origin(item),
        help=f"write `percentile: {percent:.10g}`",
    )


OBSERVER_CHECKS = {"kl": _kl, "clip": _clip, "fixed_scale": _fixed_scale, "percentile": _percentile}


def dtype_bits(dtype: str) -> int:
    """Bits of a quantized dtype by its name."""
    return int(dtype.removeprefix("q").removeprefix("u").removeprefix("int"))


def dtype_bounds(dtype: str) -> tuple[int, int]:
    """Smallest and largest integer of a quantized dtype."""
    bits = dtype_bits(dtype)
    return (0, (1 << bits) - 1) if dtype.startswith("qu") else (-(1 << bits - 1), (1 << bits - 1) - 1)


def _qscheme(slot: str, kwargs: Fields) -> str:
    return _text(kwargs, "qscheme", QSCHEME_DEFAULTS[slot])


def _text(kwargs: Fields, name: str, default: str) -> str:
    return str(kwargs[name].value) if name in kwargs else default


def _number(item: Field) -> float:
    return float(item.value) if isinstance(item.value, int | float) else 0.0


def _line(item: Field) -> tuple[str, int] | None:
    """File and line: parameters of one line that miss the same observer miss it together."""
    place = _origin(item)
    return (place.file, place.line) if place else None


def _origin(item: Field | None) -> Place | None:
    """Where a parameter was written in a file, if it was."""
    return item.origin if item and isinstance(item.origin, Place) else None


def _every_parameter() -> list[str]:
    return [name for names in (observers() | fake_quants()).values() for name in names]


def _choices(choices: list[str]) -> str:
    return "qint2 to qint16, quint2 to quint16" if "qint8" in choices else listing(choices)
