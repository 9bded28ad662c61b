"""Makes ``compiled.json`` from the models: ``python -m quantcfg.config.compile`` writes it anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, TypeAdapter

from quantcfg.config.compiled import CALL, FILE, CoreSchema, fingerprint
from quantcfg.config.parameters import FAKE_QUANT_PARAMETERS, OBSERVER_PARAMETERS, Parameters
from quantcfg.config.schema import File

# What is for serialization, documentation or classes; a `Record` is made by fields alone.
_LEFT_OUT = {
    "metadata", "serialization", "cls", "model_name", "computed_fields", "default_factory",
    "default_factory_takes_data", "serialization_alias", "validation_alias", "pydantic_js_functions", "title",
}  # fmt: skip


def compile_schema() -> dict[str, Any]:
    """The schema of the file and of all parameters, in values that JSON can hold."""
    File.model_rebuild()
    return {
        "made_from": fingerprint(),
        "file": _portable(File.__pydantic_core_schema__),
        "observers": {kind: _parameters(model) for kind, model in OBSERVER_PARAMETERS.items()},
        "fake_quants": {kind: _parameters(model) for kind, model in FAKE_QUANT_PARAMETERS.items()},
    }


def compiled_text() -> str:
    """The text of the file."""
    return json.dumps(compile_schema(), indent=1) + "\n"


def _parameters(model: type[Parameters]) -> dict[str, CoreSchema]:
    return {name: _parameter(field.rebuild_annotation()) for name, field in model.model_fields.items()}


def _parameter(annotation: Any) -> CoreSchema:
    adapter: TypeAdapter[Any] = TypeAdapter(annotation, config={"strict": True, "allow_inf_nan": False})
    portable: CoreSchema = _portable(adapter.core_schema)
    return portable


def _portable(node: Any) -> Any:
    if isinstance(node, dict):
        return _portable_dict(node)
    if isinstance(node, list | tuple):
        return [_portable(item) for item in node]
    if callable(node):
        return {CALL: _name_of(node)}
    return node


def _portable_dict(node: dict[str, Any]) -> dict[str, Any]:
    made = {key: _portable(item) for key, item in node.items() if key not in _LEFT_OUT}
    for key in ("ref", "schema_ref"):
        if key in made:
            made[key] = str(made[key]).partition(":")[0]  # what follows is an address in memory
    if made.get("type") == "model-fields":
        fields = node["fields"].items()
        made["fields"] = {field.get("validation_alias", name): _portable(field) for name, field in fields}
    if made.get("type") == "default":
        made["default"] = _default(node)
    return made


def _default(node: dict[str, Any]) -> Any:
    """The default of a field, as far as a check of values together may ask for it: not that of a section."""
    value = node.get("default")
    return None if isinstance(value, BaseModel) else _portable(value)


def _name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


if __name__ == "__main__":
    FILE.write_text(compiled_text(), encoding="utf-8")
