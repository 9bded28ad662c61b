"""The schema as pydantic's core runs it, kept in a file: checking a config need not make the models first.

Making them takes three times as long as all the rest of `quantcfg validate`. The file is a cache: it names
what it was made from, and where that has changed the schema is compiled anew, as `make schema` does.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic_core import SchemaValidator

FOLDER = Path(__file__).parent
FILE = FOLDER / "compiled.json"
SOURCES = ("section.py", "schema.py", "calibration.py", "training.py", "parameters.py", "conditions.py")
CALL = "$call"
CoreSchema = dict[str, Any]


class Record:
    """A section while its values are checked together: its fields, with the defaults of those left out."""

    __slots__ = ("__dict__", "__pydantic_extra__", "__pydantic_fields_set__", "__pydantic_private__")

    __pydantic_fields_set__: set[str]

    @property
    def model_fields_set(self) -> set[str]:
        """The fields that were given."""
        return self.__pydantic_fields_set__


@cache
def compiled() -> dict[str, Any]:
    """The compiled schema: ``file``, and the parameters of ``observers`` and ``fake_quants`` by kind."""
    try:
        kept = json.loads(FILE.read_bytes())
        fresh = kept["made_from"] == fingerprint()
    except (OSError, ValueError, KeyError, TypeError):
        fresh = False
    if fresh:
        return dict(kept)
    from quantcfg.config.compile import compile_schema

    return compile_schema()


def fingerprint() -> str:
    """What the sources of the schema hold, in one number; line ends do not count."""
    texts = (FOLDER.joinpath(name).read_bytes().replace(b"\r\n", b"\n") for name in SOURCES)
    return f"{zlib.crc32(b''.join(texts)):08x}"


@cache
def file_validator() -> SchemaValidator:
    """Checks the whole file, given as plain values."""
    return SchemaValidator(revived(compiled()["file"]))


@cache
def parameter_validator(kind: str, name: str) -> SchemaValidator:
    """Checks one parameter of an observer or fake quantize."""
    kinds = compiled()["observers"] | compiled()["fake_quants"]
    return SchemaValidator(revived(kinds[kind][name]), {"strict": True, "allow_inf_nan": False})


def revived(node: Any) -> Any:
    """A part of the compiled schema with the functions and the class that JSON cannot hold."""
    if isinstance(node, list):
        return [revived(item) for item in node]
    if not isinstance(node, dict):
        return node
    if CALL in node:
        return _deferred(node[CALL])
    made = {key: revived(item) for key, item in node.items()}
    return made | {"cls": Record} if node.get("type") == "model" else made


def _deferred(name: str) -> Callable[[Any], Any]:
    """A function by ``module:name``, imported when it is called: some need the models."""
    module, _, function = name.partition(":")

    def call(value: Any) -> Any:
        found = import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
        return found(value)  # type: ignore[operator]

    call.__name__ = function
    return call


def fields_at(loc: tuple[str | int, ...]) -> list[str]:
    """The keys of the section that a location of an error leads to; tags of unions in it are steps, too.

    Of a section that may be one of several kinds, it is the key that says of which.
    """
    node: CoreSchema | None = opened()
    for key in loc:
        step = _step(node, key) if node else None
        node = opened(step) if step else None
    if node is None:
        return []
    named = node.get("discriminator")
    return [named] if isinstance(named, str) else list(node.get("fields", ()))


def opened(node: CoreSchema | None = None) -> CoreSchema:
    """A schema without what is wrapped around it: a reference, a default, null as another choice.

    Without an argument it is that of the whole file.
    """
    node = node or compiled()["file"]
    while True:
        if node["type"] == "definition-ref":
            node = _definitions()[node["schema_ref"]]
        elif node["type"] in ("definitions", "model", "default", "nullable", "function-after"):
            node = node["schema"]
        else:
            return node


@cache
def _definitions() -> dict[str, CoreSchema]:
    return {item["ref"]: item for item in compiled()["file"].get("definitions", ())}


def _step(node: CoreSchema, key: str | int) -> CoreSchema | None:
    if node["type"] == "model-fields":
        found = node["fields"].get(key)
        return found["schema"] if found else None
    if node["type"] == "dict":
        return node.get("values_schema")
    return node["choices"].get(key) if node["type"] == "tagged-union" else None
