"""Starting from one qconfig and changing fields of it: what presets, named qconfigs and `inherit` share."""

from __future__ import annotations

from quantcfg.config.kinds import accepted
from quantcfg.config.spec import QCONFIG_DEFAULTS, SLOTS, Field, Fields, Scalar, slot_kwargs


def overlay(base: Fields, changes: Fields) -> dict[str, Field]:
    """The fields of ``base`` with ``changes`` written over them, key by key.

    When a slot changes its observer or its fake quantize, parameters of the old kind that the new one does
    not have stay behind: nobody wrote them for the new kind. The same holds for the bounds of an old dtype
    and the channel axis of an old scheme.
    """
    result = dict(base)
    for slot in SLOTS:
        for name in _left_behind(base, changes, slot):
            result.pop(f"{slot}_qkwargs.{name}", None)
    return result | dict(changes)


def _left_behind(base: Fields, changes: Fields, slot: str) -> set[str]:
    inherited, written = slot_kwargs(base, slot), slot_kwargs(changes, slot)
    gone: set[str] = set()
    if f"{slot}_observer" in changes or f"{slot}_fake_quant" in changes:
        now = {**base, **changes}
        gone |= (
            inherited.keys() - accepted(kind(now, f"{slot}_observer"), kind(now, f"{slot}_fake_quant")).keys()
        )
    if _differs(inherited, written, "dtype"):
        gone |= {"quant_min", "quant_max"}
    if _differs(inherited, written, "qscheme"):
        gone |= {"ch_axis"}
    return gone


def _differs(inherited: Fields, written: Fields, name: str) -> bool:
    return name in written and name in inherited and inherited[name].value != written[name].value


def kind(fields: Fields, name: str) -> str | None:
    """The observer or fake quantize in effect for a field such as ``weight_observer``; None for null."""
    value: Scalar = fields[name].value if name in fields else QCONFIG_DEFAULTS[name]
    return None if value is None else str(value)
