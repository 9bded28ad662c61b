"""What a prepared model does at each site while it runs: the handler built from the assignments."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantcfg.errors import PrepareError, warn
from quantcfg.numeric.exporting import is_exporting
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.numeric.relu import relu
from quantcfg.preparation.intercept import Memo, Scope, scope_of
from quantcfg.preparation.names import ancestors
from quantcfg.preparation.ops import COMPUTING, METADATA, canonical, spec_of
from quantcfg.preparation.places import Places, is_compiled, occurrence
from quantcfg.preparation.record import Site, Slot
from quantcfg.preparation.starting import check_starts

_RELUS = ("relu", "relu_")

LAYERS = frozenset({
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Sigmoid, nn.Tanh, nn.Softmax, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Embedding,
})  # fmt: skip
"""torch's modules whose forward returns what one torch function makes of its first argument."""


@dataclass(slots=True)
class LiveBatchNorm:
    """A batch norm that stays in the model: its GEMM's weights are quantized as they will be when folded.

    ``fake_quantize(w * f) / f`` with ``f = gamma / sqrt(running_var + eps)``, so that the statistics stay
    live while training sees the rounding of the folded weights (Krishnamoorthi 2018, arXiv 1806.08342,
    section 3.2.2).
    """

    module: Any  # a torch batch norm, whose buffers mypy cannot see
    axis: int
    groups: int = 1  # of a transposed convolution, whose weight has the channels of one group on that axis

    def factor(self, weight: Tensor) -> Tensor:
        """``f``, shaped to multiply ``weight``; 1 where gamma is 0: that channel becomes 0 later anyway."""
        factor = self._factor(weight)
        return torch.where(factor == 0, torch.ones_like(factor), factor)

    def folded(self, weight: Tensor) -> Tensor:
        """The weight that folding leaves: bit for bit what was quantized here, but 0 where gamma is 0."""
        return weight * self._factor(weight)

    def _factor(self, weight: Tensor) -> Tensor:
        variance, eps = self.module.running_var, self.module.eps
        factor: Tensor = torch.rsqrt(variance + eps)
        if self.module.weight is not None:
            factor = factor * self.module.weight
        if self.axis == 0:
            return factor.reshape(-1, *[1] * (weight.dim() - 1))
        rows = factor.reshape(self.groups, -1)
        if self.groups > 1:
            rows = rows.repeat_interleave(weight.shape[0] // self.groups, 0)
        return rows.reshape(*rows.shape, *[1] * (weight.dim() - 2))


@dataclass(slots=True)
class Action:
    """Everything to do around one torch function."""

    edges: list[tuple[Slot, int, FakeQuantizeBase]] = field(default_factory=list)
    weights: list[tuple[Slot, FakeQuantizeBase]] = field(default_factory=list)
    output: FakeQuantizeBase | None = None
    num_outputs: int = 0
    write_back: bool = False
    inplace: bool = False
    batch_norm: LiveBatchNorm | None = None

    def run(self, func: Callable[..., Any], args: Any, kwargs: Any, memo: Memo) -> Any:
        """Run ``func`` on quantized arguments and quantize what it returns."""
        if self.edges or self.weights:
            args, kwargs = list(args), dict(kwargs)
            for slot, key, fake_quant in self.edges:
                change = partial(_shared, key, fake_quant, memo)
                if self.inplace and slot == (0,):
                    change = partial(_in_place, fake_quant)
                replace_argument(args, kwargs, slot, change)
            for slot, fake_quant in self.weights:
                if fake_quant.observing or fake_quant.quantizing:
                    replace_argument(args, kwargs, slot, partial(self._weight, fake_quant))
        output = self.output
        if output is None:
            return func(*args, **kwargs)
        if self.write_back:
            return self._written_back(func, args, kwargs, output)
        result = _compiled_well(func)(*args, **kwargs)
        if isinstance(result, Tensor):
            return output(result) if result.is_floating_point() else result
        return self._quantize_items(result, output)

    def _written_back(
        self, func: Callable[..., Any], args: Any, kwargs: Any, output: FakeQuantizeBase
    ) -> Tensor:
        """Put the quantized result where an op has written; what autograd keeps of it is not overwritten."""
        if self.inplace and args:
            result: Tensor = args[0].copy_(output(func(args[0].clone(), *args[1:], **kwargs)))
        else:
            written = func(*args, **kwargs)
            result = written.copy_(output(written.clone()))
        return result

    def _weight(self, fake_quant: FakeQuantizeBase, weight: Tensor) -> Any:
        factor = None if self.batch_norm is None else self.batch_norm.factor(weight)
        result = fake_quant(weight if factor is None else weight * factor)
        if not fake_quant.quantizing:
            fake_quant.observing = False  # weights rest in calibration: one look is enough
            return weight
        return result if factor is None else result / factor

    def _quantize_items(self, result: Any, fake_quant: FakeQuantizeBase) -> Any:
        items = list(result)
        for index, item in enumerate(items[: self.num_outputs or None]):
            if isinstance(item, Tensor) and item.is_floating_point():
                items[index] = fake_quant(item)
        make = getattr(type(result), "_make", type(result))
        return make(items)


def _compiled_well(func: Callable[..., Any]) -> Callable[..., Any]:
    """``func``, or what compiles better where nobody sees the result before it is quantized."""
    if func.__name__ not in _RELUS or not torch.compiler.is_compiling() or is_exporting():
        return func
    return relu


def _in_place(fake_quant: FakeQuantizeBase, x: Tensor) -> Tensor:
    """Quantize what an op is about to write into: whoever else sees that memory has to see the result."""
    if fake_quant.quantizing:
        x.copy_(fake_quant(x.clone()))
        return x
    result: Tensor = fake_quant(x)
    return result


def _shared(key: int, fake_quant: FakeQuantizeBase, memo: Memo, x: Any) -> Any:
    """Quantize a value once, however many ops of this forward read it."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x  # this time it is an index or a number
    seen = memo.get(key)
    if seen is not None and seen[0] is x:
        return seen[1]
    result: Tensor = fake_quant(x)
    memo[key] = (x, result)
    return result


def replace_argument(
    args: list[Any], kwargs: dict[str, Any], slot: Slot, change: Callable[[Any], Any]
) -> None:
    """Put ``change(argument)`` in the place of an argument; one that is absent this time stays absent."""
    key = slot[0]
    holder: Any = args if isinstance(key, int) else kwargs
    present = key < len(args) if isinstance(key, int) else key in kwargs
    if not present or holder[key] is None:
        return
    if len(slot) == 1:
        holder[key] = change(holder[key])
        return
    items = list(holder[key])
    position = slot[1]
    if isinstance(position, int) and position < len(items):
        items[position] = change(items[position])
    holder[key] = items


@dataclass(slots=True)
class Table:
    """The actions of one call of one module: which spellings count, and the action of each occurrence.

    ``known`` has every spelling that ran, with an action or without; ``only`` is the action of a module that
    is one torch function. ``hands_on`` says of a module that holds no other one that nothing ran.
    """

    names: dict[str, str] = field(default_factory=dict)
    actions: dict[str, list[Action | None]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    places: Places = field(default_factory=Places)
    only: Action | None = None
    hands_on: bool = False

    def set(self, op: str, ordinal: int, action: Action) -> None:
        """Note the action of the ``ordinal``-th occurrence of ``op``."""
        self.pad(op, ordinal)
        self.actions[op][ordinal] = action

    def pad(self, op: str, ordinal: int) -> None:
        """Note that the ``ordinal``-th occurrence of ``op`` was recorded, with or without an action."""
        row = self.actions.setdefault(op, [])
        row.extend([None] * (ordinal + 1 - len(row)))

    def close(
        self, module: nn.Module, spellings: dict[str, str], counts: dict[str, int], places: Places
    ) -> None:
        """Keep only the ops that have an action, as many occurrences as ran."""
        self.actions = {op: row for op, row in self.actions.items() if any(row)}
        for op in self.actions:
            self.pad(op, counts[op] - 1)
        self.names = {spelling: op for spelling, op in spellings.items() if op in self.actions}
        self.known = set(spellings)
        self.places = places
        if type(module) in LAYERS and sum(counts.values()) == 1:
            self.only = next((row[0] for row in self.actions.values()), None)

    def misses(self, name: str) -> bool:
        """Whether an op that did not run here should be said, now that it does.

        Where nothing is quantized, that is one of a module that took another's place: a layer, or whatever
        runs where nothing but modules did. Compiled code says nothing, and has other names for some.
        """
        if name in self.known or torch.compiler.is_compiling():
            return False
        return bool(self.actions) or not self.known or bool(spec_of(canonical(name)).weights)

    def layer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Action | None:
        """The action of a module that is one torch function of ``args``, whose weights stay as they are."""
        if self.only is None or kwargs or len(args) != 1:
            return None
        for _, fake_quant in self.only.weights:
            if fake_quant.observing or fake_quant.quantizing:
                return None
        return self.only


class Runner:
    """The handler of a prepared model. ``tables`` has, for each module, one table per recorded call.

    A call beyond the recorded ones uses the last one's quantizers, and so does a loop that runs longer. An op
    in a place that ran none of its kind is in float.
    """

    def __init__(
        self,
        tables: dict[str, list[Table]],
        unseen: set[str],
        modules: Mapping[str, FakeQuantizeBase] | None = None,
    ) -> None:
        self.tables = tables
        self.unseen = unseen
        self.modules = {} if modules is None else modules
        self.settled = False  # every quantizer has been at work
        self.has_started = False  # training has
        self.is_training = False  # the module that the forward of now started at
        self.strangers: set[str] = set()  # modules that ran what was not recorded
        self.alone: set[str] = set()  # modules that ran outside of those that they are in

    def enter(self, path: str, call: int) -> Table | None:
        """The table of this call."""
        tables = self.tables.get(path)
        if tables is None:
            if self.unseen and path in self.unseen:
                self._warn_unseen(path)
            return None
        return tables[call] if call < len(tables) else tables[-1]

    def action_at(self, site: Site) -> Action | None:
        """What is done at a recorded site, if anything is."""
        tables = self.tables.get(site.path, [])
        table = tables[site.call] if site.call < len(tables) else None
        row = table.actions.get(site.counted, []) if table is not None else []
        return row[site.ordinal] if site.ordinal < len(row) else None

    def _warn_unseen(self, path: str) -> None:
        if torch.compiler.is_compiling():
            return
        self.unseen.discard(path)
        warn(
            f"module '{path}' runs now but did not with the example inputs: its ops stay in float; "
            "prepare with inputs that reach it",
        )

    def _meet(self, path: str, name: str, result: Any) -> None:
        """Say it once for each module when it computes something that was not recorded."""
        if torch.compiler.is_compiling() or (isinstance(result, Tensor) and not result.is_floating_point()):
            return
        op = canonical(name)
        if op in METADATA or spec_of(op).kind not in COMPUTING or path in self.strangers or is_compiled():
            return
        self.strangers.add(path)
        warn(
            f"'{op}' runs in {path or 'the model'} now where it did not with the example inputs: what was "
            "not recorded there stays in float; prepare with inputs that reach it, if it shall be quantized",
        )

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        """Say it once when quantizers have nothing to quantize with, or are passed by.

        Raises:
            PrepareError: ``torch.jit.trace``, or an exporter that calls it, is at work; or what is learned
                cannot start.
        """
        self.is_training = module.training
        if torch.compiler.is_compiling():
            return
        if torch._C._get_tracing_state() is not None:
            raise PrepareError(
                "torch.jit.trace cannot follow a prepared model that observes or quantizes",
                hint="torch.export.export and torch.onnx.export(dynamo=True) can; or trace it in FLOAT",
            )
        self._find_passed_by(module)
        self._find_idle()
        if not self.has_started:
            self.has_started = check_starts(module, self.modules, self._of_weights)

    def _find_passed_by(self, module: nn.Module) -> None:
        """Warn where modules run, and the forward that calls them, with quantized ops of its own, does not.

        Once is nothing strange: an encoder runs alone before its decoder.
        """
        scope = scope_of(module)
        path = "" if scope is None else scope.path
        self.alone = {other for other in self.alone if path not in ancestors(other)}
        around = [
            outer for outer in ancestors(path) if any(table.actions for table in self.tables.get(outer, ()))
        ]
        recomputing = torch._C._current_graph_task_id() != -1  # by activation checkpointing, in a backward
        is_handed_on = threading.current_thread() is not threading.main_thread()  # by the forward, to a pool
        if not around or around[-1] in self.strangers or recomputing or is_handed_on:
            return
        if path not in self.alone:
            self.alone.add(path)
            return
        self.strangers.add(around[-1])
        warn(
            f"module '{path}' runs outside of the forward of {around[-1] or 'the model'}: the ops of that "
            "forward stay in float where others call them; let it run as it did with the example inputs",
        )

    def _of_weights(self) -> set[nn.Module]:
        tables = (table for row in self.tables.values() for table in row)
        actions = (action for table in tables for row in table.actions.values() for action in row if action)
        return {fake_quant for action in actions for _, fake_quant in action.weights}

    def _find_idle(self) -> None:
        modules = self.modules.values()
        if self.settled or any(m.observing for m in modules):
            return
        idle = [m for m in modules if not (m.quantizing or m.observed)]
        self.settled = bool(idle) or all(m.quantizing for m in modules)
        if idle:
            warn(
                f"{len(idle)} of {len(self.modules)} quantizers have seen nothing yet and stay in float; "
                "calibrate or train before you evaluate",
            )

    def handle(self, scope: Scope, func: Callable[..., Any], args: Any, kwargs: Any, memo: Memo) -> Any:
        """Quantize around one torch function, if there is anything to do."""
        table = scope.table
        if table is None:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        op = table.names.get(name)
        if op is None:
            result = func(*args, **kwargs)
            # What hands on its input in evaluation computes in training alone, as what drops paths does.
            if table.misses(name) and not (table.hands_on and self.is_training):
                self._meet(scope.path, name, result)
            return result
        ordinal = occurrence(scope, op, table.places)
        if ordinal is None:
            result = func(*args, **kwargs)
            self._meet(scope.path, name, result)
            return result
        actions = table.actions[op]
        action = actions[ordinal] if ordinal < len(actions) else actions[-1]
        if action is None:
            return func(*args, **kwargs)
        return action.run(func, args, kwargs, memo)
