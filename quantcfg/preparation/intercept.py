"""Seeing every torch call of a model's forward, and which module made it, without touching its code.

Each module's ``forward`` is replaced *on the instance* by a `ScopedForward`, which tells the model's
`Interceptor` where the program is; the outermost one also enters a `TorchFunctionMode` that hands every torch
function to the interceptor's handler. Class, methods, hooks and parameters stay as they are, nothing is
traced, and nothing is global: two prepared models do not know of each other.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Hashable, Iterable
from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantcfg.errors import PrepareError

if TYPE_CHECKING:
    from quantcfg.preparation.prepare import Pending
    from quantcfg.preparation.state import FakeQuantState, Prepared


class Scope:
    """One call of one module: its path, which call of this forward it is, and the ops counted so far.

    ``outer`` is the call that it was made in.
    """

    __slots__ = ("call", "counts", "outer", "path", "table")

    def __init__(self, path: str, call: int, table: Any, outer: Scope | None = None) -> None:
        self.path = path
        self.call = call
        self.table = table
        self.outer = outer
        self.counts: dict[Any, int] = {}

    def next_ordinal(self, op: Hashable) -> int:
        """How many times ``op``, or what else is counted, ran in this scope before."""
        ordinal = self.counts.get(op, 0)
        self.counts[op] = ordinal + 1
        return ordinal

    def calls(self) -> dict[str, int]:
        """By path, which call it is of this module and of those around it that it runs in."""
        around = {} if self.outer is None else self.outer.calls()
        return around | {self.path: self.call}


class Handler(Protocol):
    """What is done with the torch functions: recorded, or quantized."""

    def enter(self, path: str, call: int) -> Table | None:
        """What the handler wants to find on the scope of this call."""

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward starts at its outermost module, which need not be the model."""

    def handle(self, scope: Scope, func: Callable[..., Any], args: Any, kwargs: Any, memo: Memo) -> Any:
        """Run one torch function in place of the caller."""


class Table(Protocol):
    """What a handler knows of one call of one module."""

    def layer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layer | None:
        """What to run around the forward, if it is one torch function of ``args``, which nobody need see."""


class Layer(Protocol):
    """What is done around one torch function."""

    def run(self, func: Callable[..., Any], args: Any, kwargs: Any, memo: Memo) -> Any:
        """Run ``func``, or the forward that is nothing else, on arguments that may be changed."""


Memo = dict[int, tuple[Tensor, Tensor]]


class Position:
    """Where a forward is: its innermost scope, the calls counted so far and the values quantized so far."""

    def __init__(self) -> None:
        self.scope: Scope | None = None
        self.depth = 0  # forwards that are running now, in any state
        self.calls: dict[str, int] = {}
        self.memo: Memo = {}
        self.mode: _Mode | None = None  # what sees the torch functions of the forward, unless that is traced

    def next_call(self, path: str) -> int:
        """How many times the module at ``path`` ran in this forward before."""
        call = self.calls.get(path, 0)
        self.calls[path] = call + 1
        return call

    def reset(self) -> None:
        """Forget the forward that ended."""
        self.scope = None
        self.mode = None
        self.calls = {}
        self.memo = {}


class _ThreadPosition(Position, threading.local):
    """A position for every thread that asks. No copy and no pickle has one: it starts anew there."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


class Interceptor:
    """The state of one model's forward. ``active`` off means that the original forward runs untouched."""

    def __init__(self) -> None:
        self.handler: Handler | None = None
        self.active = False
        self._of_thread = _ThreadPosition()
        self._of_compiler = Position()  # which cannot look into a thread's own
        self.prepared: Prepared | None = None
        self.pending: Pending | None = None  # a preparation that waits for the first forward
        self.deferred_state: FakeQuantState | None = None  # the state to set after it

    def __deepcopy__(self, memo: dict[int, Any]) -> Interceptor:
        """Another for a copy; the same one in a forward: what that copies of itself is a part of it."""
        if self.position.depth:
            return self
        copied = memo[id(self)] = Interceptor()
        copied.__dict__.update((name, copy.deepcopy(value, memo)) for name, value in vars(self).items())
        return copied

    @property
    def position(self) -> Position:
        """Where this thread is in the forward."""
        return self._of_compiler if torch.compiler.is_compiling() else self._of_thread


class _Mode(TorchFunctionMode):
    """Hands every torch function of the block to the handler."""

    def __init__(self, handler: Handler, position: Position) -> None:
        super().__init__()
        self.handler = handler
        self.position = position

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        scope = self.position.scope
        if scope is None:
            return func(*args, **(kwargs or {}))
        return self.handler.handle(scope, func, args, kwargs or {}, self.position.memo)


class Substitute(TorchFunctionMode):
    """Calls something else in place of one torch function that the forward of a folded module calls."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func, args, kwargs = self.call(func, args, kwargs or {})
        return func(*args, **kwargs)

    def call(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """The function, and the arguments to call it with."""
        raise NotImplementedError  # each kind of fold has its own


SCOPED = "_scoped_forward"
"""Where a module keeps its `ScopedForward`, whatever others put in the place of its ``forward``."""


def _scoped_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module.__dict__[SCOPED](*args, **kwargs)


class ScopedForward:
    """The ``forward`` of one instance: the original one, run inside its scope.

    It copies, pickles and moves with its module, and answers ``inspect.signature`` as the original does. Who
    takes ``__func__`` of it, to wrap that and bind it again, gets what runs the scope of the module it is
    bound to, be it a copy.
    ``substitute`` is a mode that the forward of a folded module runs under, in every state.
    """

    def __init__(self, module: nn.Module, path: str, interceptor: Interceptor) -> None:
        self.module = module
        self.path = path
        self.interceptor = interceptor
        self.original: Callable[..., Any] | None = module.__dict__.get("forward")
        self.substitute: type[Substitute] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the original forward; where quantization is on, inside its scope."""
        interceptor = self.interceptor
        position = interceptor.position
        outer, handler = position.scope, interceptor.handler
        if outer is None or handler is None or not interceptor.active:
            return self._begin(interceptor, args, kwargs)
        call = position.next_call(self.path)
        table = handler.enter(self.path, call)
        layer = table.layer(args, kwargs) if table is not None else None
        if layer is not None and self.original is self.substitute is None and _is_innermost(position.mode):
            return self._as_layer(layer, args, kwargs, position.memo)
        position.scope = Scope(self.path, call, table, outer)
        try:
            return self._inner(args, kwargs)
        finally:
            position.scope = outer

    def _as_layer(self, layer: Layer, args: Any, kwargs: Any, memo: Memo) -> Any:
        """Run the forward, which is one torch function, with what is done around it and nobody looking."""
        mode = torch._C._pop_torch_function_stack()
        try:
            return layer.run(MethodType(type(self.module).forward, self.module), args, kwargs, memo)
        finally:
            torch._C._push_on_torch_function_stack(mode)

    def _begin(self, interceptor: Interceptor, args: Any, kwargs: Any) -> Any:
        """Run the forward where none was quantized that is running now."""
        if interceptor.pending is not None and not self.path:
            interceptor.pending(self.module, args, kwargs)
        position = interceptor.position
        position.depth += 1
        try:
            if not interceptor.active or interceptor.handler is None:
                return self._inner(args, kwargs)
            return self._outermost(position, interceptor.handler, args, kwargs)
        finally:
            position.depth -= 1

    def _outermost(self, position: Position, handler: Handler, args: Any, kwargs: Any) -> Any:
        call = position.next_call(self.path)
        position.scope = Scope(self.path, call, handler.enter(self.path, call))
        try:
            handler.begin(self.module, args, kwargs)
            with _Mode(handler, position) as mode:
                position.mode = None if torch.compiler.is_compiling() else mode
                return self._inner(args, kwargs)
        finally:
            position.reset()

    def _inner(self, args: Any, kwargs: Any) -> Any:
        if self.substitute is not None:
            with self.substitute(self.module):
                return self._bound()(*args, **kwargs)
        if self.original is not None:
            return self.original(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def _bound(self) -> Callable[..., Any]:
        return self.original or type(self.module).forward.__get__(self.module)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._bound())

    @property
    def __code__(self) -> Any:
        # torch.export reads the file name of `forward` from here.
        return getattr(inspect.unwrap(self._bound()), "__code__", ScopedForward.__call__.__code__)

    @property
    def __func__(self) -> Callable[..., Any]:
        return _scoped_forward

    @property
    def __name__(self) -> str:
        return "forward"

    def __repr__(self) -> str:
        return f"<forward of {self.path or 'the model'} with quantization>"


def _is_innermost(mode: _Mode | None) -> bool:
    """Whether no other mode, which the model has entered, sees a torch function before this one does."""
    depth = torch._C._len_torch_function_stack()
    return mode is not None and depth > 0 and torch._C._get_function_stack_at(depth - 1) is mode


def scope_of(module: nn.Module) -> ScopedForward | None:
    """The `ScopedForward` of a module of a prepared model."""
    return module.__dict__.get(SCOPED)


def interceptor_of(model: nn.Module) -> Interceptor | None:
    """The interceptor of a prepared model or of one of its parts; None for any other module."""
    return next(iter(interceptors_of(model).values()), None)


def interceptors_of(model: nn.Module) -> dict[str, Interceptor]:
    """The interceptors of all prepared models that a module is or holds, by the path of each.

    Raises:
        PrepareError: ``model`` is no module.
    """
    _refuse_other_than_module(model)
    found: dict[Interceptor, str] = {}
    for path, module in model.named_modules():
        if (forward := scope_of(module)) is not None:
            found.setdefault(forward.interceptor, path)
    return {path: interceptor for interceptor, path in found.items()}


def _refuse_other_than_module(given: Any) -> None:
    if not isinstance(given, nn.Module):
        got = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        raise PrepareError(f"a model must be a torch.nn.Module (got {got})")


def install(modules: Iterable[tuple[str, nn.Module]], interceptor: Interceptor) -> None:
    """Give every named module a `ScopedForward`, or the one that it has another interceptor."""
    for path, module in modules:
        if (scope := scope_of(module)) is not None:
            scope.interceptor = interceptor
        else:
            module.__dict__["forward"] = module.__dict__[SCOPED] = ScopedForward(module, path, interceptor)


def uninstall(model: nn.Module) -> None:
    """Take every `ScopedForward` off again."""
    for module in model.modules():
        forward = module.__dict__.pop(SCOPED, None)
        if forward is None or module.__dict__["forward"] is not forward:
            continue
        if forward.original is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = forward.original
