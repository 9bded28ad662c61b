"""What a code, preset, observer, fake quantize or field of the config means, by its name alone."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from quantcfg.config.catalogue import (
    CatalogueEntry,
    Row,
    fake_quant_catalogue,
    observer_catalogue,
    preset_catalogue,
    value_text,
)
from quantcfg.config.codes import CODES, page_text
from quantcfg.config.docs import field_docs
from quantcfg.config.schema import File
from quantcfg.config.suggest import nearest
from quantcfg.errors import UsageError

KIND = "name"
"""The key by which the kinds of a section are told apart."""


def explain_topic(topic: str) -> str | CatalogueEntry:
    """The page of a code, the entry of a preset or kind, or the documentation of a field such as ``qat.bn``.

    Raises:
        UsageError: there is nothing of that name; the hint is the nearest one.
    """
    if topic.upper() in CODES:
        return page_text(CODES[topic.upper()])
    entries = _catalogue()
    if topic in entries:
        return entries[topic]
    fields = dict(config_fields())
    if topic in fields:
        return fields[topic]
    near = nearest(topic, [*CODES, *entries, *fields])
    raise UsageError(f"nothing is called '{topic}'", hint=f"did you mean {near}?" if near else "")


def _catalogue() -> Mapping[str, CatalogueEntry]:
    return preset_catalogue() | observer_catalogue() | fake_quant_catalogue()


def config_fields() -> Iterator[tuple[str, CatalogueEntry]]:
    """Every field of the file by its path, with what it means and, for a section, what is in it."""
    yield from _fields(File, "", ())


def _fields(
    model: type[BaseModel], prefix: str, above: tuple[type, ...]
) -> Iterator[tuple[str, CatalogueEntry]]:
    docs = field_docs(model)
    for name, info in model.model_fields.items():
        path = f"{prefix}{_key(name, info)}"
        inner = [found for found in _models(info.annotation) if found not in above]
        kinds = {_kind(found): found for found in inner}
        if len(kinds) > 1 and None not in kinds:
            yield path, CatalogueEntry(path, docs[name], tuple(map(_kind_row, inner)))
            yield from _fields_of_kinds(inner, f"{path}.")
        else:
            rows = [row for found in inner for row in _rows(found)] or _value_rows(info)
            yield path, CatalogueEntry(path, docs[name], tuple(rows))
            for found in inner:
                yield from _fields(found, f"{path}.", (*above, model))


def _kind_row(model: type[BaseModel]) -> Row:
    keys = [name for name in model.model_fields if name != KIND]
    return Row(str(_kind(model)), ", ".join(keys), inspect.cleandoc(model.__doc__ or ""))


def _fields_of_kinds(kinds: Sequence[type[BaseModel]], prefix: str) -> Iterator[tuple[str, CatalogueEntry]]:
    """The fields of a section of several kinds; where one means something else in each, all of it is said."""
    for name in dict.fromkeys(name for model in kinds for name in model.model_fields):
        path, owners = f"{prefix}{name}", [model for model in kinds if name in model.model_fields]
        found = [(model, row) for model in owners for row in _rows(model) if row.name == name]
        meanings = {(row.value, row.doc) for _, row in found}
        if len(meanings) > 1:
            doc = "Which of these it is." if name == KIND else f"What it means depends on `{KIND}`."
            rows = [replace(row, name=str(_kind(model))) for model, row in found]
        else:
            doc, rows = found[0][1].doc, _value_rows(owners[0].model_fields[name])
        yield path, CatalogueEntry(path, doc, tuple(rows))


def _rows(model: type[BaseModel]) -> list[Row]:
    docs = field_docs(model)
    return [Row(_key(name, info), _default(info), docs[name]) for name, info in model.model_fields.items()]


def _value_rows(info: FieldInfo) -> list[Row]:
    """What a field is when it is left out, and what it may be if that is one of a few words."""
    words = ", ".join(map(value_text, _words(info.annotation)))
    default = "none, it is required" if info.is_required() else _default(info)
    rows = (Row("default", default), Row("one of", words))
    return [row for row in rows if row.value]


def _key(name: str, info: FieldInfo) -> str:
    return info.alias or name


def _default(info: FieldInfo) -> str:
    """The default as a config writes it; nothing for a section, whose fields have their own."""
    if info.is_required():
        return "required"
    is_section = isinstance(info.default, BaseModel) or info.default_factory is not None
    return "" if is_section else value_text(info.default)


def _kind(model: type[BaseModel]) -> str | None:
    """What the key says of a section that may be one of several kinds."""
    name = model.model_fields.get(KIND)
    return next(iter(_words(name.annotation)), None) if name else None


def _words(annotation: Any) -> list[Any]:
    """The values that a type allows, where it lists them."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if hasattr(annotation, "__metadata__"):
        return _words(annotation.__origin__)
    if get_origin(annotation) in (Union, types.UnionType):
        return [word for part in get_args(annotation) for word in _words(part)]
    return []


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    """The models that a type leads to, through unions and annotations; not those behind users' names."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    if hasattr(annotation, "__metadata__"):
        return _models(annotation.__origin__)
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []
