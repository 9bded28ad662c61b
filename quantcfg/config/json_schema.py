"""The JSON Schema of the config file, for editors and for validators other than this one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from quantcfg.config import schema as models, training
from quantcfg.config.docs import field_docs
from quantcfg.config.parameters import (
    FAKE_QUANT_PARAMETERS,
    OBSERVER_PARAMETERS,
    PARAMETERS,
    ObserverParameters,
    Parameters,
)
from quantcfg.config.presets import PRESETS
from quantcfg.config.qconfigs import QKWARGS
from quantcfg.config.spec import SLOTS

SCHEMA_ID = "urn:quantcfg:config:1"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
FREE_NOTES = {"^x-": {"description": "A note; not read."}}


def schema_text(names: Iterable[str] = (), types: Iterable[str] = ()) -> str:
    """The schema as the file in ``schemas/`` holds it, or that of one model."""
    return json.dumps(config_schema(names, types), indent=2) + "\n"


def config_schema(names: Iterable[str] = (), types: Iterable[str] = ()) -> dict[str, Any]:
    """The schema of the whole file.

    The ``names`` of a model's modules and ops, and the ``types`` of its modules, become keys that an editor
    completes; patterns are accepted as before.
    """
    schema = models.File.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema["$defs"]
    for name, definition in [*definitions.items(), ("File", schema)]:
        _describe(definition, (vars(models) | vars(training))[name])
    definitions |= _parameter_definitions()
    _type_qkwargs(definitions["QConfigFields"])
    _suggest_presets(definitions["QConfigFields"])
    rules = definitions["Rules"]["properties"]
    for key, known in (("module_name", names), ("module_type", types)):
        if listed := dict.fromkeys(known, rules[key]["additionalProperties"]):
            rules[key]["properties"] = listed
    return {"$schema": DIALECT, "$id": SCHEMA_ID} | schema


def _describe(definition: dict[str, Any], model: type[BaseModel]) -> None:
    """Write the documentation of a model into its schema, allow notes, drop titles that say nothing new."""
    docs = {model.model_fields[name].alias or name: text for name, text in field_docs(model).items()}
    definition["description"] = inspect.cleandoc(model.__doc__ or "")
    definition["patternProperties"] = FREE_NOTES
    definition.pop("title", None)
    for name, field in definition["properties"].items():
        field.pop("title", None)
        field["description"] = docs[name]


def _parameter_definitions() -> dict[str, Any]:
    return {f"{kind}_parameters": _parameters(model) for kind, model in PARAMETERS.items()}


def _parameters(model: type[Parameters]) -> dict[str, Any]:
    schema = model.model_json_schema()
    docs = field_docs(model)
    for name, field in schema["properties"].items():
        field.pop("title", None)
        field["description"] = docs[name]
    return {"description": inspect.cleandoc(model.__doc__ or ""), "properties": schema["properties"]}


def _type_qkwargs(fields: dict[str, Any]) -> None:
    """Parameters by name; where a mapping names its observer or fake quantize, only those of that kind.

    Without a name the kind may come from a preset, which a schema cannot know: any kind's parameter passes.
    """
    anything = {name: _reference(name) for model in PARAMETERS.values() for name in model.model_fields}
    for qkwargs in QKWARGS:
        fields["properties"][qkwargs] |= {"properties": anything, "additionalProperties": False}
    fields["allOf"] = [_when(slot, observer) for slot in SLOTS for observer in OBSERVER_PARAMETERS]


def _reference(name: str) -> dict[str, Any]:
    """The type of a parameter: of the one kind that has it, or of any kind that has it."""
    owners = [kind for kind, model in PARAMETERS.items() if name in model.model_fields]
    base = ObserverParameters.model_fields.get(name)
    if base and all(PARAMETERS[kind].model_fields[name].annotation == base.annotation for kind in owners):
        owners = owners[:1]
    references = [{"$ref": f"#/$defs/{kind}_parameters/properties/{name}"} for kind in owners]
    return references[0] if len(references) == 1 else {"anyOf": references}


def _when(slot: str, observer: str) -> dict[str, Any]:
    kinds = [OBSERVER_PARAMETERS[observer], *FAKE_QUANT_PARAMETERS.values()]
    names = sorted({name for model in kinds for name in model.model_fields})
    condition = {"properties": {f"{slot}_observer": {"const": observer}}, "required": [f"{slot}_observer"]}
    allowed = {"propertyNames": {"enum": names}}
    return {"if": condition, "then": {"properties": {f"{slot}_qkwargs": allowed}}}


def _suggest_presets(fields: dict[str, Any]) -> None:
    fields["properties"]["preset"]["examples"] = list(PRESETS)
