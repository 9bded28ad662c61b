"""Tensors: of which kind they are, where they lie, and which of them something holds."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Leaf = tuple[tuple[str, ...], Any]

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""The attributes that torch gives every module; its own code, or who uses it, has put the others on it."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_CODE = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)
_LEAVES = (Tensor, nn.Module, torch.Generator, *_PLAIN, *_CODE)


def memory_of(tensor: Tensor) -> int:
    """Which memory a tensor lies in; tensors that share memory have it in common, and no others that live.

    Not its address: that is 0 for everything on the meta device.
    """
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # sparse, or wrapped by torch.func: it shares with nobody
        return id(tensor)


def is_float(leaf: Any) -> bool:
    """Whether something is a dense tensor of floats: what ops are recorded for."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and not _is_sparse(leaf)


def hides_floats(leaf: Any) -> bool:
    """Whether a tensor is sparse, nested or complex: made of activations, maybe, but not recorded as one."""
    return isinstance(leaf, Tensor) and (_is_sparse(leaf) or leaf.is_complex())


def _is_sparse(tensor: Tensor) -> bool:
    return tensor.layout is not torch.strided or tensor.is_nested


def is_outside_data(name: str, leaf: Any) -> bool:
    """Whether an input holds numbers that are no tensor: an array, or floats in a list."""
    return hasattr(leaf, "__array_interface__") or (isinstance(leaf, float) and "." in name)


def twins_of(tensor: Tensor, others: Iterable[Tensor | None]) -> Iterator[Tensor]:
    """Those of ``others`` that are the same elements of the same memory: ``as_subclass`` shows to nobody."""
    wanted = _place(tensor)
    return (other for other in others if other is not None and _place(other) == wanted)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return memory_of(tensor), tensor.shape, tensor.stride(), tensor.storage_offset()


def tensors_in(result: Any) -> Iterator[Tensor]:
    """Every tensor in what a forward takes or returns."""
    return (leaf for _, leaf in reachable(result) if isinstance(leaf, Tensor))


def reachable(value: Any, path: tuple[str, ...] = (), seen: set[int] | None = None) -> Iterator[Leaf]:
    """What lies in nested containers and plain objects, each once, with the names that lead there.

    Modules, classes and functions are leaves: what they hold is theirs.
    """
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    if isinstance(value, _LEAVES):
        yield path, value
        return
    seen.add(id(value))
    items = _items(value)
    if items is None:
        yield path, value
        return
    for name, item in items:
        yield from reachable(item, (*path, name), seen)


def is_plain(value: Any) -> bool:
    """Whether something is a number, a text, or a tuple of such: nothing in it can change."""
    return isinstance(value, _PLAIN) or (type(value) is tuple and all(map(is_plain, value)))


def _items(value: Any) -> Iterable[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    if isinstance(value, list | tuple | set | frozenset | deque):
        return [(str(index), item) for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    return vars(value).items() if hasattr(value, "__dict__") else None
