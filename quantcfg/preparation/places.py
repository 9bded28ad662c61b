"""Knowing an op again: by the place in the source that calls it, not by how many ran before it.

What a branch does that the example did not take, or what only training computes, must not be given the
quantizers of what stands elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType
from typing import Any

import torch

from quantcfg.preparation import intercept
from quantcfg.preparation.intercept import Scope

Place = tuple[str, "_Call"]
"""An op, and the call of it: the function that it stands in, with its lines and columns there."""

_Call = tuple[str, int | None, int | None, int | None, int | None]

_HANDLER = 4  # frames from `_caller` over the handler and its mode to what called the torch function


def _through() -> frozenset[str]:
    """The files, torch's and our own, whose functions only pass an op on: who called them is who calls it."""
    from torch import _jit_internal, _ops, _tensor, functional, overrides
    from torch.utils import _device

    modules = (_jit_internal, _ops, _tensor, functional, overrides, torch.nn.functional, _device, intercept)
    return frozenset(str(module.__file__) for module in modules)


_THROUGH = _through()
_COMPILED = str(Path("torch", "_dynamo", "eval_frame.py"))  # which calls all code that a compiler made


def called_from(op: str) -> Place:
    """The place that called the torch function which a handler is given; for what ``handle`` calls."""
    return _place(op, _caller())


def _caller() -> Any:
    """The frame that called the torch function which a handler is given; for what its ``handle`` calls."""
    frame: Any = sys._getframe(_HANDLER)
    while frame.f_code.co_filename in _THROUGH and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _place(op: str, frame: Any) -> Place:
    # An instruction is two bytes. Its number would not do: where Python has specialized a call, another of
    # the instructions that make it up is the one that runs.
    return op, _calls_in(frame.f_code)[frame.f_lasti // 2]


def _calls_in(code: CodeType) -> list[_Call]:
    """The calls that the instructions of a function belong to, one for each instruction."""
    known = _CALLS.get(id(code))
    if known is None:
        calls = [(code.co_qualname, *position) for position in code.co_positions()]
        known = _CALLS[id(code)] = (code, calls)
    return known[1]


_CALLS: dict[int, tuple[CodeType, list[_Call]]] = {}  # by identity: comparing code takes long


def is_compiled() -> bool:
    """Whether compiled code called the torch function that a handler is given; for what ``handle`` calls."""
    frame: Any = sys._getframe(_HANDLER)
    while frame is not None and frame.f_code.co_filename != intercept.__file__:
        if frame.f_code.co_filename.endswith(_COMPILED):
            return True
        frame = frame.f_back
    return False


class Places:
    """The places of the ops of one call of one module, with the ordinals that ran at each.

    A pickle leaves them behind: where it is read, the source may be another. Without places, as in compiled
    code, which has no frames, an op is known by how many of its kind ran before it.
    """

    def __init__(self) -> None:
        self.ordinals: dict[Place, list[int]] = {}
        # By op, code and instruction: finding the place itself takes longer than all else between two ops.
        self._found: dict[tuple[str, int, int], list[int] | None] = {}

    def note(self, place: Place, ordinal: int) -> None:
        """The ``ordinal``-th op of its kind ran here."""
        self.ordinals.setdefault(place, []).append(ordinal)

    def of(self, op: str, frame: Any) -> list[int] | None:
        """The ordinals that ran where ``frame`` is; None where none did."""
        key = (op, id(frame.f_code), frame.f_lasti)  # code that was looked into is kept, and so is its id
        if key not in self._found:
            self._found[key] = self.ordinals.get(_place(op, frame))
        return self._found[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> Places:
        return self

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


def occurrence(scope: Scope, op: str, places: Places) -> int | None:
    """Which of the recorded ops of its kind runs now; None: one that did not run when it was recorded.

    Where a loop runs longer than it did, the last one of its place. For a handler's ``handle`` to call.
    """
    if torch.compiler.is_compiling() or not places.ordinals:
        return scope.next_ordinal(op)
    ordinals = places.of(op, _caller())
    if ordinals is None:
        return None
    if len(ordinals) == 1:
        return ordinals[0]
    return ordinals[min(scope.next_ordinal(id(ordinals)), len(ordinals) - 1)]
