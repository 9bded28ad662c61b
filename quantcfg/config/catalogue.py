"""Presets, observers and fake quantizes as entries to list, from the same models that check them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from quantcfg.config.docs import field_docs
from quantcfg.config.parameters import FAKE_QUANT_PARAMETERS, OBSERVER_PARAMETERS, ObserverParameters
from quantcfg.config.presets import PRESETS, Preset
from quantcfg.config.spec import FakeQuantSpec, QConfigSpec


@dataclass(frozen=True, slots=True)
class Row:
    """One line of an entry: a parameter or field, its value or default, and what it means."""

    name: str
    value: str
    doc: str = ""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """Something that a config can name."""

    name: str
    doc: str
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{"name": row.name, "value": row.value, "doc": row.doc} for row in self.rows]
        return {"name": self.name, "doc": self.doc, "rows": rows}


def preset_catalogue() -> dict[str, CatalogueEntry]:
    """Every preset with its fields in both stages."""
    return {name: CatalogueEntry(name, preset.doc, _preset_rows(preset)) for name, preset in PRESETS.items()}


def observer_catalogue() -> dict[str, CatalogueEntry]:
    """Every observer with its own parameters first, then those that all have."""
    return {name: _kind(name, model) for name, model in OBSERVER_PARAMETERS.items()}


def fake_quant_catalogue() -> dict[str, CatalogueEntry]:
    """Every kind of fake quantize with its parameters."""
    return {name: _kind(name, model) for name, model in FAKE_QUANT_PARAMETERS.items()}


def _kind(name: str, model: type[BaseModel]) -> CatalogueEntry:
    docs, common = field_docs(model), ObserverParameters.model_fields
    names = sorted(model.model_fields, key=lambda field: list(common).index(field) if field in common else -1)
    rows = [Row(field, value_text(model.model_fields[field].default), docs[field]) for field in names]
    return CatalogueEntry(name, inspect.cleandoc(model.__doc__ or ""), tuple(rows))


def _preset_rows(preset: Preset) -> tuple[Row, ...]:
    if preset.calib == preset.qat:
        return _spec_rows("both stages", preset.calib)
    return (*_spec_rows("calib", preset.calib), *_spec_rows("qat", preset.qat))


def _spec_rows(stage: str, spec: QConfigSpec) -> tuple[Row, ...]:
    return tuple(Row(f"{stage} {slot}", slot_text(value)) for slot, value in spec.slots.items())


def slot_text(slot: FakeQuantSpec | None) -> str:
    """One slot on one line: ``lsq, min_max, dtype=qint4``; float for None."""
    if slot is None:
        return "float"
    kwargs = [f"{name}={value_text(value)}" for name, value in slot.qkwargs]
    return ", ".join([slot.fake_quant, slot.observer, *kwargs])


def value_text(value: Any) -> str:
    """A value as a config writes it."""
    if value is None:
        return "null"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(value_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
