"""Nested state (optimizer, scheduler, random generator) as JSON beside named tensors, without pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quantcfg.errors import RunError

_TENSOR, _TUPLE, _ITEMS, _FLOAT = "__tensor__", "__tuple__", "__items__", "__float__"


def split_tensors(value: Any, prefix: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Separate ``value`` into what JSON can say and the tensors it holds.

    Tuples, keys that are not strings and floats that are not finite survive. `join_tensors` undoes it.

    Raises:
        RunError: a value of a kind that has no place in a checkpoint.
    """
    tensors: dict[str, Tensor] = {}
    return _split(value, prefix, tensors), tensors


def join_tensors(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `split_tensors`."""
    if isinstance(document, list):
        return [join_tensors(item, tensors) for item in document]
    if not isinstance(document, dict):
        return document
    if _TENSOR in document:
        return tensors[document[_TENSOR]]
    if _FLOAT in document:
        return float(document[_FLOAT])
    if _TUPLE in document:
        return tuple(join_tensors(item, tensors) for item in document[_TUPLE])
    if _ITEMS in document:
        return {key: join_tensors(item, tensors) for key, item in document[_ITEMS]}
    return {key: join_tensors(item, tensors) for key, item in document.items()}


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = detached_copy(value)
        return {_TENSOR: path}
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return {_TUPLE: _split_items(value, path, tensors)}
    if isinstance(value, list):
        return _split_items(value, path, tensors)
    if isinstance(value, Mapping):
        return _split_mapping(value, path, tensors)
    raise RunError(f"'{path}' is of type {type(value).__name__}, which a checkpoint cannot hold")


def _split_items(values: list[Any] | tuple[Any, ...], path: str, tensors: dict[str, Tensor]) -> list[Any]:
    return [_split(value, _join(path, index), tensors) for index, value in enumerate(values)]


def _split_mapping(value: Mapping[Any, Any], path: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    items = [(key, _split(item, _join(path, key), tensors)) for key, item in value.items()]
    if all(isinstance(key, str) and not key.startswith("__") for key, _ in items):
        return dict(items)
    return {_ITEMS: [list(item) for item in items]}


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def detached_copy(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares memory with nothing: what safetensors can write."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
