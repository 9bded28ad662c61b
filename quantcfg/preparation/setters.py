"""Qconfig setters of the reference toolkit: rules for what the dict and the attributes leave open.

A setter is asked only for ops that nothing before it has decided: the first writer wins. Names come before
templates, whatever their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantcfg.config.findings import nearest_name
from quantcfg.config.matching import NameIndex
from quantcfg.config.rules import Decision, Rule, RuleSet, Target, in_order
from quantcfg.config.suggest import listing
from quantcfg.errors import PrepareError, warn
from quantcfg.preparation.record import Recording
from quantcfg.preparation.templates import with_templates
from quantcfg.qconfig import QConfig, preset_qconfig, spec_from_qconfig


@dataclass(frozen=True, slots=True)
class ModuleNameQconfigSetter:
    """Qconfigs by module name; a name holds for everything inside it, and one that matches nothing warns.

    Example:
        >>> wide = qc.get_default_qconfig(activation_qkwargs={"dtype": "qint16"})
        >>> setters = (qc.ModuleNameQconfigSetter({"1": wide}), qc.default_qat_qconfig_setter)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2))
        >>> prepared = qc.prepare_qat_fx(model, example_inputs=torch.ones(2, 4), qconfig_setter=setters)
        >>> qc.fake_quants(prepared)["1.output"].dtype
        qint16
    """

    qconfigs: Mapping[str, QConfig | None]

    def __post_init__(self) -> None:
        given: Any = self.qconfigs
        if not isinstance(given, Mapping):
            got = type(given).__name__
            raise ValueError(f"the qconfigs of a ModuleNameQconfigSetter must be a dict by name (got {got})")
        for name, qconfig in given.items():
            _check_qconfig(f"the qconfig of '{name}' in a ModuleNameQconfigSetter", qconfig, or_none=True)

    def decide(self, recording: Recording, targets: Sequence[Target]) -> list[Decision]:
        """The decision of this setter alone for every target."""
        del recording
        rules = [
            Rule("module_name", name, None if qconfig is None else spec_from_qconfig(qconfig), optional=True)
            for name, qconfig in self.qconfigs.items()
        ]
        return RuleSet(in_order(rules)).resolve(targets)

    def strangers(self, recording: Recording, targets: Sequence[Target]) -> dict[str, str | None]:
        """The names that match no module and no op, each with the one that was most likely meant."""
        known = {path for target in targets for path, _ in target.chain} | set(recording.types)
        unmatched = (name for name in self.qconfigs if not any(map(NameIndex([(name, True)]).matches, known)))
        return {name: nearest_name(name, targets)[0] for name in unmatched}


@dataclass(frozen=True, slots=True)
class TemplateQconfigSetter:
    """One qconfig for the whole model, refined by templates.

    Example:
        >>> setter = qc.TemplateQconfigSetter(qc.get_default_qconfig(), ("high_precision_output",))
        >>> model = nn.Linear(4, 2)
        >>> prepared = qc.prepare_qat_fx(model, example_inputs=torch.ones(2, 4), qconfig_setter=setter)
        >>> list(qc.fake_quants(prepared))
        ['input.input', 'linear_0.weight']
    """

    reference_qconfig: QConfig
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_qconfig("the qconfig of a TemplateQconfigSetter", self.reference_qconfig, or_none=False)

    def decide(self, recording: Recording, targets: Sequence[Target]) -> list[Decision]:
        """The decision of this setter alone for every target."""
        rules = RuleSet((Rule("global", "", spec_from_qconfig(self.reference_qconfig)),))
        return with_templates(self.templates, recording, rules.resolve(targets))


Setter = ModuleNameQconfigSetter | TemplateQconfigSetter


def _check_qconfig(what: str, given: Any, *, or_none: bool) -> None:
    if not isinstance(given, QConfig) and not (or_none and given is None):
        wanted = "a QConfig or None" if or_none else "a QConfig"
        raise ValueError(f"{what} must be {wanted} (got {given!r}); make one with get_default_qconfig(...)")


def check_setter(given: Any) -> None:
    """Refuse what is no setter.

    Raises:
        PrepareError: it is none; the message says what is wanted.
    """
    if not isinstance(given, Setter):
        raise PrepareError(
            f"a qconfig_setter must be a setter or several of them (got {type(given).__name__})",
            hint="ModuleNameQconfigSetter({name: qconfig}) makes one from qconfigs by name",
        )


def apply_setters(
    setters: Sequence[Setter], recording: Recording, targets: Sequence[Target], decisions: Sequence[Decision]
) -> list[Decision]:
    """Fill in the decisions that no rule has made."""
    result = list(decisions)
    for setter in sorted(setters, key=lambda s: isinstance(s, TemplateQconfigSetter)):
        offered = setter.decide(recording, targets)
        result = [
            mine if mine.winner is not None else other for mine, other in zip(result, offered, strict=True)
        ]
    return result


def warn_of_strangers(setters: Sequence[Setter], recording: Recording, targets: Sequence[Target]) -> None:
    """Warn of names in setters that match nothing; they are skipped."""
    for setter in setters:
        found = setter.strangers(recording, targets) if isinstance(setter, ModuleNameQconfigSetter) else {}
        if found:
            names = [
                f"'{name}'" + (f" (did you mean '{near}'?)" if near else "") for name, near in found.items()
            ]
            warn(f"names of a ModuleNameQconfigSetter match nothing and are skipped: {listing(names, 8)}")


def get_sensitive_op_qconfig_setter(
    sensitive_type: str,
    origin_dtype: str | None,
    default_qconfig: QConfig,
    table: Sequence[Sequence[Any]],
    *,
    topk: int | None = None,
    ratio: float | None = None,
) -> ModuleNameQconfigSetter:
    """Give ``default_qconfig`` to the most sensitive ops of a table.

    Rows are ``[op name, "activation" | "weight", op type, metric, dtype, ...]``, the worst first. They are
    filtered by type, and by dtype where they have one, and then cut, so that ``topk`` ops are changed: one
    that has several rows counts once.

    Args:
        sensitive_type: ``activation`` or ``weight``.
        origin_dtype: take only rows of this dtype; None takes all.
        default_qconfig: what the chosen ops get.
        table: the rows.
        topk: how many ops, above 0.
        ratio: or which share of the filtered ops, in (0, 1], rounded up.

    Raises:
        ValueError: not exactly one of ``topk`` and ``ratio``, or one out of its range; another type than
            those; a row that is none.

    Example:
        >>> table = [["layer1.0", "activation", "Conv2d", 0.31], ["head", "weight", "Linear", 0.2]]
        >>> wide = qc.get_default_qconfig(activation_qkwargs={"dtype": "qint16"})
        >>> list(qc.get_sensitive_op_qconfig_setter("activation", None, wide, table, topk=1).qconfigs)
        ['layer1.0']
    """
    if (topk is None) == (ratio is None):
        raise ValueError("give exactly one of 'topk' and 'ratio'")
    if sensitive_type not in ("activation", "weight"):
        raise ValueError(f"'sensitive_type' must be 'activation' or 'weight' (got {sensitive_type!r})")
    for row in table:
        if isinstance(row, str) or len(row) < 2:
            raise ValueError(f"a row of the table must be [op, 'activation' or 'weight', ...] (got {row!r})")
    if topk is not None and topk <= 0:
        raise ValueError(f"'topk' must be above 0 (got {topk})")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"'ratio' must be in (0, 1] (got {ratio})")
    rows = (row for row in table if row[1] == sensitive_type and _has_dtype(row, origin_dtype))
    ops = list(dict.fromkeys(str(row[0]) for row in rows))
    count = topk if topk is not None else math.ceil(len(ops) * (ratio or 0))
    return ModuleNameQconfigSetter(dict.fromkeys(ops[:count], default_qconfig))


def _has_dtype(row: Sequence[Any], dtype: str | None) -> bool:
    return dtype is None or len(row) < 5 or str(row[4]) == dtype


_OUTPUT = ("high_precision_output",)
_OUTPUT_AND_GRID = (*_OUTPUT, "grid_sample_int16")
_SETTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "default_calibration_qconfig_setter": ("default_calib_8bit_fake_quant_qconfig", _OUTPUT_AND_GRID),
    "default_qat_qconfig_setter": ("default_qat_8bit_fake_quant_qconfig", _OUTPUT_AND_GRID),
    "default_qat_fixed_act_qconfig_setter": (
        "default_qat_8bit_fixed_act_fake_quant_qconfig",
        _OUTPUT_AND_GRID,
    ),
    "calibration_8bit_weight_16bit_act_qconfig_setter": (
        "default_calib_8bit_weight_16bit_act_fake_quant_qconfig",
        _OUTPUT,
    ),
    "qat_8bit_weight_16bit_act_qconfig_setter": (
        "default_qat_8bit_weight_16bit_act_fake_quant_qconfig",
        _OUTPUT,
    ),
    "qat_8bit_weight_16bit_fixed_act_qconfig_setter": (
        "default_qat_8bit_weight_16bit_fixed_act_fake_quant_qconfig",
        _OUTPUT,
    ),
}


def __getattr__(name: str) -> TemplateQconfigSetter:
    # The reference's ready-made setters are attributes.
    if name in _SETTERS:
        preset, templates = _SETTERS[name]
        return TemplateQconfigSetter(preset_qconfig(preset), templates)
    raise AttributeError(f"module 'quantcfg.preparation.setters' has no attribute '{name}'")
