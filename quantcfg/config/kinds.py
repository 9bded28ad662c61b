"""Which parameters each observer and fake quantize has, by name alone; `parameters` holds their types."""

from __future__ import annotations

from quantcfg.config.compiled import compiled


def observers() -> dict[str, list[str]]:
    """The parameters of every observer by its name."""
    return {kind: list(fields) for kind, fields in compiled()["observers"].items()}


def fake_quants() -> dict[str, list[str]]:
    """The parameters of every kind of fake quantize by its name."""
    return {kind: list(fields) for kind, fields in compiled()["fake_quants"].items()}


def owners(parameter: str) -> list[str]:
    """The kinds that have this parameter, observers first; every kind of observer for a common one."""
    return [kind for kind, names in (observers() | fake_quants()).items() if parameter in names]


def accepted(observer: str | None, fake_quant: str | None) -> dict[str, str]:
    """Parameter name -> the kind that has it, for one observer inside one fake quantize."""
    kinds = {observer: observers().get(observer or ""), fake_quant: fake_quants().get(fake_quant or "")}
    return {name: kind for kind, names in kinds.items() if kind and names for name in names}
