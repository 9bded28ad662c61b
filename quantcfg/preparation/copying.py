"""Copying a user's model where ``copy.deepcopy`` refuses, forgets, or leaves a tie to the original."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from types import CellType, FunctionType, MemberDescriptorType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from quantcfg.errors import PrepareError
from quantcfg.preparation.collector import uncollected
from quantcfg.preparation.tensors import OF_EVERY_MODULE, is_plain, reachable

Memo = dict[int, Any]
"""What `copy.deepcopy` takes: the copy of each object that has one, by the ``id`` of the object."""


@uncollected()
def copy_of(model: nn.Module, taken: Iterable[tuple[Any, Any]] = ()) -> nn.Module:
    """A deep copy of a model, which is not touched by what runs on the copy.

    Functions that hold a part of the model, a forward put on the instance or a hook say, hold the copy's.
    What nobody can copy, a lock or an open file, the two share.

    Args:
        model: any module.
        taken: pairs of an object of the model and what the copy has in its place.

    Raises:
        PrepareError: a module refuses to be copied.
    """
    by_hand = (*taken, *_trivial(model), *_copied_by_hand(model))
    known = {id(old): new for old, new in by_hand}
    memo = dict(known)
    try:
        copied = _deepcopy(model, memo)
    except Exception:  # whatever an attribute of the user's raises while it is copied
        memo = known | {id(value): value for value in _uncopyable(model, known)}
        copied = _deepcopy_or_refuse(model, memo)
    for module in model.modules():
        if (twin := memo.get(id(module))) is not None:
            _complete(module, twin, memo)
    for old, new in zip(model.parameters(), copied.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    return copied


@torch.no_grad()  # TorchScript copies its parameters by an op, which otherwise leaves no leaves
def _deepcopy(model: nn.Module, memo: Memo) -> nn.Module:
    return copy.deepcopy(model, memo)


def _deepcopy_or_refuse(model: nn.Module, memo: Memo) -> nn.Module:
    try:
        return _deepcopy(model, memo)
    except Exception as error:  # whatever an attribute of the user's raises
        raise PrepareError(
            f"the model cannot be copied: {error}",
            hint="copy.deepcopy of each of its modules has to work",
        ) from error


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module's own code, or who uses it, has put on it."""
    return ((name, value) for name, value in vars(module).items() if name not in OF_EVERY_MODULE)


def _trivial(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Copies of what takes ``deepcopy`` long though there is nothing to it.

    That are the hooks that there are none of, ten kinds in each module, and the strides and paddings of
    convolutions, tuples that stay the same.
    """
    for module in model.modules():
        for value in vars(module).values():
            if type(value) is OrderedDict and not value:
                yield value, OrderedDict()
            elif type(value) is tuple and is_plain(value):
                yield value, value


def _copied_by_hand(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Copies of what refuses ``deepcopy``: tensors that are computed from parameters, and generators.

    ``torch.nn.utils.weight_norm`` and pruning leave such tensors behind, and so does a forward that keeps
    what it made.
    """
    for module in model.modules():
        held = {name: value for name, value in _attributes(module) if not is_plain(value)}
        for _, value in reachable(held):
            if isinstance(value, Tensor) and not value.is_leaf:
                yield value, value.detach().clone()
            elif isinstance(value, torch.Generator):
                yield value, value.clone_state()


def _uncopyable(model: nn.Module, known: Memo) -> Iterator[Any]:
    parts = known | {id(part): part for part in (*model.modules(), *model.parameters(), *model.buffers())}
    for module in model.modules():
        for _, value in _attributes(module):
            try:
                copy.deepcopy(value, dict(parts))
            except Exception:  # whatever it raises: that is why it is shared
                yield value


def _complete(old: nn.Module, new: nn.Module, memo: Memo) -> None:
    """Do what ``deepcopy`` leaves undone: ``__slots__``, which no module's state has, and functions."""
    for descriptor in _slots(type(old)):  # type: ignore[arg-type]  # mypy takes the hash of its instances
        if _is_set(old, descriptor) and not _is_set(new, descriptor):
            descriptor.__set__(new, copy.deepcopy(descriptor.__get__(old), memo))
    for name, value in vars(new).items():
        if name not in OF_EVERY_MODULE:
            new.__dict__[name] = _rebound(value, memo)
        elif name.endswith("hooks") and value:
            value.update((key, _rebound(hook, memo)) for key, hook in list(value.items()))


@lru_cache
def _slots(kind: type) -> tuple[MemberDescriptorType, ...]:
    held = (value for cls in kind.__mro__ for value in vars(cls).values())
    return tuple(value for value in held if isinstance(value, MemberDescriptorType))


def _is_set(module: nn.Module, slot: MemberDescriptorType) -> bool:
    try:
        slot.__get__(module)
    except AttributeError:
        return False
    return True


def _rebound(value: Any, memo: Memo) -> Any:
    """``value`` with copies in place of the parts of the model that it holds; itself where it holds none."""
    if not _holds_a_part(value, memo, set()):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if type(value) is FunctionType:
        return _rebound_function(value, memo)
    if type(value) is MethodType:
        return MethodType(value.__func__, _rebound(value.__self__, memo))
    if type(value) is partial:
        function, args, keywords = (_rebound(part, memo) for part in (value.func, value.args, value.keywords))
        return partial(function, *args, **keywords)
    if type(value) is dict:
        return {key: _rebound(item, memo) for key, item in value.items()}
    return type(value)(_rebound(item, memo) for item in value)


def _holds_a_part(value: Any, memo: Memo, seen: set[int]) -> bool:
    if id(value) in seen:
        return False
    seen.add(id(value))
    if id(value) in memo:
        return memo[id(value)] is not value
    return any(_holds_a_part(part, memo, seen) for part in _parts(value))


def _parts(value: Any) -> Iterable[Any]:
    if type(value) is FunctionType:
        held = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return (*held, value.__defaults__, value.__kwdefaults__, vars(value))
    if type(value) is MethodType:
        return (value.__self__,)
    if type(value) is partial:
        return (value.func, value.args, value.keywords)
    if type(value) is dict:
        return tuple(value.values())
    return value if type(value) in (list, tuple) else ()


def _is_filled(cell: CellType) -> bool:
    return cell != CellType()  # as an empty one does, it would refuse to be read


def _rebound_function(function: FunctionType, memo: Memo) -> FunctionType:
    cells = tuple(CellType() for _ in function.__closure__ or ())
    result = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
    memo[id(function)] = result  # before its cells, which may hold the function itself
    for cell, old in zip(cells, function.__closure__ or (), strict=True):
        if _is_filled(old):
            cell.cell_contents = _rebound(old.cell_contents, memo)
    result.__defaults__ = _rebound(function.__defaults__, memo)
    result.__kwdefaults__ = _rebound(function.__kwdefaults__, memo)
    result.__qualname__ = function.__qualname__
    result.__dict__.update(_rebound(vars(function), memo))
    return result
