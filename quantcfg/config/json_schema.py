"""The JSON Schema of the config file, for editors and for validators other than this one."""

from __future__ import annotations

from typing import Any

from quantcfg.config.parameters import FAKE_QUANT_PARAMETERS, OBSERVER_PARAMETERS, Parameters

SCHEMA_ID = "https://quantcfg.dev/schemas/quantcfg.schema.json"
FREE_NOTES: dict[str, Any] = {"patternProperties": {"^x-": {"description": "A note; not read."}}}


def _all_parameters() -> dict[str, Any]:
    """Every parameter of every kind, each once, with the kinds that have it where these are few."""
    merged: dict[str, list[tuple[str, Any]]] = {}
    for table in (OBSERVER_PARAMETERS, FAKE_QUANT_PARAMETERS):
        for kind, model in table.items():
            for name, schema in _properties(model).items():
                merged.setdefault(name, []).append((kind, schema))
    return {name: _joined(found) for name, found in merged.items()}


def _properties(model: type[Parameters]) -> dict[str, Any]:
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    return properties


def _joined(found: list[tuple[str, Any]]) -> Any:
    first = dict(found[0][1])
    first.pop("title", None)
    if len(found) == len(OBSERVER_PARAMETERS):
        first.pop("default", None)
        return first
    kinds = ", ".join(kind for kind, _ in found)
    if len(found) > 1:
        first = {key: first[key] for key in ("type", "description")}
    return first | {"description": f"Of {kinds}. {first.get('description', '')}"}


ANY_QKWARGS: dict[str, Any] = {
    "type": "object",
    "properties": _all_parameters(),
    "additionalProperties": False,
}


def config_schema() -> dict[str, Any]:
    """The schema of the whole file."""
    from quantcfg.config.schema import File

    schema = File.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID} | schema
