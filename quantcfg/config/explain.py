"""What a code, preset, observer, fake quantize or field of the config means, by its name alone."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from quantcfg.config.catalogue import (
    CatalogueEntry,
    Row,
    fake_quant_catalogue,
    observer_catalogue,
    preset_catalogue,
)
from quantcfg.config.codes import CODES, page_text
from quantcfg.config.docs import field_docs
from quantcfg.config.schema import File
from quantcfg.config.suggest import nearest
from quantcfg.errors import UsageError


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
        path = f"{prefix}{info.alias or name}"
        inner = [found for found in _models(info.annotation) if found not in above]
        rows = [Row(field, "", text) for found in inner for field, text in field_docs(found).items()]
        yield path, CatalogueEntry(path, docs[name], tuple(rows))
        for found in inner:
            yield from _fields(found, f"{path}.", (*above, model))


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    """The models that a type leads to, through unions and annotations; not those behind users' names."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    if hasattr(annotation, "__metadata__"):
        return _models(annotation.__origin__)
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []
