"""Record: run the model once and write down every op that makes or moves a floating-point tensor."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils import _pytree as pytree

from quantcfg.errors import warn
from quantcfg.preparation import cells, masks, ops
from quantcfg.preparation.cost import CELLS, RECURRENT, macs
from quantcfg.preparation.fold import is_own_batch_norm, is_own_layer
from quantcfg.preparation.intercept import Memo, Scope
from quantcfg.preparation.names import name_sites, named_inputs
from quantcfg.preparation.ops import OpKind, OpSpec
from quantcfg.preparation.places import Places, called_from
from quantcfg.preparation.record import Operand, Recording, Site, Slot
from quantcfg.preparation.scripts import scripts_shown
from quantcfg.preparation.stubs import DeQuantStub, QuantStub
from quantcfg.preparation.tags import Tags
from quantcfg.preparation.tensors import hides_floats, is_float, is_outside_data, tensors_in


@dataclass(frozen=True, slots=True)
class _Call:
    """One torch function call, on its way to becoming a site."""

    scope: Scope
    op: str
    counted: str
    spelling: str
    ordinal: int
    args: Any
    kwargs: Any
    transformed: bool


class _OfThread(threading.local):
    """Where the forward that a thread started is."""

    entered = ""
    repeated = False  # it started where another did: what it runs is recorded


class Recorder:
    """The handler that writes a `Recording` while the model runs as it is."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self.recording = Recording(types={path: type(m).__name__ for path, m in self._modules.items()})
        self._tags = Tags(model, self.recording)
        self._scripts = {
            module: path
            for path, module in model.named_modules()
            if isinstance(module, torch.jit.ScriptModule)
        }
        self._stubs = {
            path: module.op
            for path, module in model.named_modules()
            if isinstance(module, QuantStub | DeQuantStub)
        }
        # Of what is empty in the example only this is looked at: all of an example without samples, and what
        # layers make, as experts of whom none was asked. Of the objects that a detector did not find there
        # may be none in any batch.
        self._is_empty = False
        self._awaited: set[int] = set()
        self._hidden = False  # something ran that leaves no tags on what it makes
        self._arrays = False  # data comes as arrays or lists of numbers, from the caller or out of a tensor
        self._begun: set[str] = set()  # the modules at which a forward started
        self._here = _OfThread()
        self._thread: int | None = None  # where the first forward started
        self._threads = False  # it runs modules in others
        self._one_at_a_time = threading.Lock()

    def enter(self, path: str, call: int) -> None:
        """Count the call of a module."""
        self._here.entered = path
        self.recording.calls[path] = call + 1

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Give the inputs their names: those of the model, or of a part that is called in its place."""
        path = self._here.entered
        self._here.repeated = path in self._begun
        self._begun.add(path)
        self._tell_of_threads(path)
        inputs = list(named_inputs(module, args, kwargs))
        sizes = [leaf.numel() for _, leaf in inputs if isinstance(leaf, Tensor)]
        self._is_empty = bool(sizes) and not any(sizes)
        for name, leaf in inputs:
            self._arrays = self._arrays or is_outside_data(name, leaf)
            if is_float(leaf) and self._tags.index_of(leaf) is None:
                value = self._tags.new(leaf, "input", f"{path}.{name}".lstrip("."))
                value.live = True
                value.mask = masks.has_sentinel(leaf) or masks.is_nothing_but_mask(leaf)
                self.recording.inputs.append(value.index)

    def _tell_of_threads(self, path: str) -> None:
        """Say it once that what a thread of the forward computes outside of modules is not seen."""
        self._thread = self._thread or threading.get_ident()
        if self._thread == threading.get_ident():
            return
        if not self._threads:
            warn(
                f"'{path}' runs in a thread that the forward starts: what is computed there outside of "
                "modules stays in float and is not in the plan; what shall be quantized goes into modules",
            )
        self._threads = self._hidden = True

    def handle(self, scope: Scope, func: Callable[..., Any], args: Any, kwargs: Any, memo: Memo) -> Any:
        """Run ``func`` and note what it took and what it made."""
        del memo
        if self._here.repeated:
            return func(*args, **kwargs)
        op = ops.op_name(func)
        self.recording.differentiates |= op in ops.DIFFERENTIATING
        if op in ops.METADATA:
            self._note_question(op, args, kwargs)
            return func(*args, **kwargs)
        call = self._count(scope, op, getattr(func, "__name__", op), args, kwargs)
        self._hidden = self._hidden or call.transformed
        operands = list(self._operands(args, kwargs, is_layer=bool(ops.spec_of(op).weights)))
        result = func(*args, **kwargs)
        made = args[0] if call.spelling == "__setitem__" else result
        outputs = _floats_in(made)
        if not outputs:
            self._note_readings(op, operands)
            return result
        inplace = ops.is_inplace(call.spelling) and any(made is arg for arg in args[:1])
        site = self._made(call, operands, outputs, inplace=inplace)
        self._note_module(site, func, call)
        if not (inplace or kwargs.get("out") is made):
            return result
        self._tags.write(outputs[0], site.outputs[0])
        return self._tags.alias(result, site.outputs[0]) if made is result else result

    def _note_question(self, op: str, args: Any, kwargs: Any) -> None:
        """Note what is asked about the elements of tensors, and what may be computed from the answer."""
        self._arrays = self._arrays or (op in ops.TO_ARRAYS and self._may_be_live(args[0]))
        if op in ops.READING:
            self._note_readings(op, self._operands(args, kwargs, is_layer=False))

    def _may_be_live(self, leaf: Any) -> bool:
        """Whether a tensor is an activation: a table made of constants alone, with numpy say, is another."""
        index = self._tags.known(leaf) if is_float(leaf) else None
        return is_float(leaf) and (index is None or self.recording.values[index].live)

    def _note_module(self, site: Site, func: Callable[..., Any], call: _Call) -> None:
        """Note whether a module computes with what it holds, and with nothing else."""
        module = self._modules[site.path]
        if is_own_batch_norm(module, func, call.args, call.kwargs):
            self.recording.own_batch_norms.add(site.index)
        if site.kind is OpKind.GEMM and is_own_layer(module, call.args, call.kwargs):
            self.recording.own_layers.add(site.index)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note the call of a TorchScript module, whose ops nobody sees, as one op."""
        path = self._scripts.get(module)  # type: ignore[call-overload]
        if path is None:
            return
        call = self.recording.calls.get(path, 0)
        for inner, _ in module.named_modules(prefix=path):
            self.enter(inner, call)
        noted = self._count(Scope(path, call, None), "script", "script", args, {})
        self._made(noted, list(self._operands(args, {}, is_layer=True)), _floats_in(output), inplace=False)

    def _count(self, scope: Scope, op: str, spelling: str, args: Any, kwargs: Any) -> _Call:
        ordinal = scope.next_ordinal(op)
        key = (scope.path, scope.call)
        self.recording.spellings.setdefault(key, {})[spelling] = op
        self.recording.counts[key] = scope.counts
        if key not in self.recording.within:
            self.recording.within[key] = scope.calls()
        self.recording.places.setdefault(key, Places()).note(called_from(op), ordinal)
        stub = self._stubs.get(scope.path, op)
        return _Call(scope, stub, op, spelling, ordinal, args, kwargs, masks.is_transformed(args, kwargs))

    def _note_readings(self, op: str, operands: Iterable[Operand]) -> None:
        for operand in operands:
            self.recording.values[operand.value].asked.append(op)

    def _made(self, call: _Call, operands: list[Operand], outputs: list[Tensor], *, inplace: bool) -> Site:
        """Write down what ran: a site, and a value for each of its outputs."""
        site = self._site(call, operands, inplace=inplace)
        site.outputs = tuple(self._output(site, tensor) for tensor in outputs)
        if not operands and any(map(hides_floats, pytree.tree_leaves(call.args))):
            for index in site.outputs:
                value = self.recording.values[index]
                value.live = value.learned = True
        self._mark_masks(site, operands, outputs, call)
        site.adds_choice = site.op in masks.SUMS and any(map(masks.is_choice, self._chosen(site, call)))
        if site.kind is OpKind.GEMM or site.op in (*RECURRENT, *CELLS):
            shapes, told = self._shapes(operands), next(iter(call.args), None)
            site.macs = macs(site.op, shapes, self._shapes(site.weights), outputs[0].numel(), told)
        return site

    def _chosen(self, site: Site, call: _Call) -> Iterator[Tensor]:
        """The arguments that are made of integers and booleans, and not of an activation or a parameter."""
        other = {operand.slot[0] for operand in site.data if not self._is_chosen(operand.value)}
        given = ((key, arg) for key, arg in (*enumerate(call.args), *call.kwargs.items()) if key != "out")
        return (arg for key, arg in given if isinstance(arg, Tensor) and key not in other)

    def _is_chosen(self, index: int) -> bool:
        value, maker = self.recording.values[index], self.recording.producer(index)
        return not (value.live or value.fixed or maker is None or maker.kind is OpKind.CREATE)

    def _shapes(self, operands: Iterable[Operand]) -> list[tuple[int, ...]]:
        return [self.recording.values[operand.value].shape for operand in operands]

    def _site(self, call: _Call, operands: list[Operand], *, inplace: bool) -> Site:
        spec = ops.spec_of(call.op)
        if call.transformed:
            spec = ops.UNDER_TRANSFORM
        data, weights = self._split(spec, call.op, operands)
        others = tuple(o for o in operands if o not in data and o not in weights)
        kind = ops.kind_of(call.op, spec, call.args, call.kwargs)
        into = data[0].value if kind is OpKind.JOIN and spec.data and data else None
        if into is not None and self.recording.values[into].unwritten:
            spec, kind = ops.spec_of("setitem"), OpKind.FLOAT  # most of it is what the memory held before
        with self._one_at_a_time:
            site = Site(
                index=len(self.recording.sites), path=call.scope.path, call=call.scope.call, op=call.op,
                spelling=call.spelling, counted=call.counted, ordinal=call.ordinal, spec=spec, kind=kind,
                data=tuple(data), weights=tuple(weights), others=others, outputs=(), inplace=inplace,
                dim=ops.dim_of(call.args, call.kwargs),
                exponent=ops.exponent_of(call.op, call.args, call.kwargs),
                equation=ops.equation_of(call.op, call.args),
            )  # fmt: skip
            self.recording.sites.append(site)
        unread = ops.UNREAD.get(call.op, frozenset())
        for operand in operands:
            if operand.slot[0] not in unread:
                self.recording.values[operand.value].consumers.append(site.index)
        return site

    def _split(self, spec: OpSpec, op: str, operands: list[Operand]) -> tuple[list[Operand], list[Operand]]:
        """Tell the weights of an op from its data. A constant in a matrix product is a weight."""
        values = self.recording.values
        weights = [o for o in operands if o.slot[0] in spec.weights and values[o.value].fixed]
        data = [o for o in operands if not spec.data or o.slot[0] in spec.data]
        if spec.kind is OpKind.GEMM and not spec.weights and op != "scaled_dot_product_attention":
            fixed = [o for o in data if values[o.value].fixed and len(values[o.value].shape) >= 2]
            if fixed and len(fixed) < len(data):
                weights = fixed
        elif not weights:
            data += [o for o in operands if o.slot[0] in spec.weights]
        taken = {o.slot for o in weights}
        return [o for o in data if o.slot not in taken], weights

    def _output(self, site: Site, tensor: Tensor) -> int:
        values = self.recording.values
        sources = [values[o.value] for o in (*site.data, *site.weights)]
        value = self._tags.new(tensor, "site")
        value.producer = site.index
        if tensor.numel() == 0 and (site.weights or any(s.index in self._awaited for s in sources)):
            self._awaited.add(value.index)
        if site.kind is OpKind.CREATE:  # like its argument, but not computed from it
            value.live = site.op in ops.RANDOM or (self._arrays and site.op in ops.FROM_ARRAYS)
            value.learned = value.live and site.op in ops.FROM_ARRAYS
        else:
            found = tensor.numel() > 0 or self._is_empty
            passes = found or value.index in self._awaited or site.kind is OpKind.MOVE
            is_reached = passes and any(source.live for source in sources)
            value.live = is_reached or (found and self._applies_layer(site))
            value.learned = any(values[o.value].learned for o in (*site.data, *site.weights, *site.others))
        value.fixed = bool(sources) and all(source.fixed for source in sources) and not value.live
        keeps = site.kind is OpKind.MOVE or site.spec is ops.spec_of("setitem")
        value.unwritten = site.op in ops.UNWRITTEN or (keeps and any(source.unwritten for source in sources))
        return value.index

    def _applies_layer(self, site: Site) -> bool:
        """Whether a layer computes with what is no constant of the model, be it made of integers.

        A product with a buffer may build a mask from integers.
        """
        if site.kind is not OpKind.GEMM or not site.weights:
            return False
        data, weights = ([self.recording.values[o.value] for o in part] for part in (site.data, site.weights))
        if not data:
            return True  # an embedding
        return any(weight.learned for weight in weights) and not all(value.fixed for value in data)

    def _mark_masks(self, site: Site, operands: list[Operand], outputs: list[Tensor], call: _Call) -> None:
        values = self.recording.values
        given = any(values[operand.value].mask for operand in operands)
        made = [values[index] for index in site.outputs]
        written = masks.writes_mask(site.op, call.args, call.kwargs, made)
        ordinary = any(value.live for value in made) and not given and site.op in masks.ORDINARY
        for value, tensor in zip(made, outputs, strict=True):
            looks = masks.has_sentinel if value.live else masks.looks_like_mask
            unseen = ordinary or value.unwritten
            value.mask = (given and masks.carries(site)) or written or (not unseen and looks(tensor))

    def _operands(self, args: Any, kwargs: Any, *, is_layer: bool) -> Iterator[Operand]:
        for key, argument in (*enumerate(args), *kwargs.items()):
            if key == "out":
                continue  # written, not read
            if isinstance(argument, Tensor):
                yield from self._operand((key,), argument, is_layer=is_layer)
            elif isinstance(argument, list | tuple):
                for position, item in enumerate(argument):
                    if isinstance(item, Tensor):
                        yield from self._operand((key, position), item, is_layer=is_layer)

    def _operand(self, slot: Slot, tensor: Tensor, *, is_layer: bool) -> Iterator[Operand]:
        if not is_float(tensor):
            return
        is_awaited = is_layer or self._is_empty or self._tags.index_of(tensor) in self._awaited
        if tensor.numel() == 0 and not is_awaited:
            return
        if tensor.numel() == 0 and isinstance(tensor, nn.Parameter):
            return  # a layer with no features, which there are none of in any batch
        index = self._tags.known(tensor)
        yield Operand(slot, self._constant(tensor) if index is None else index)

    def _constant(self, tensor: Tensor) -> int:
        """The value of a tensor that came from nowhere: nobody saw how it was made."""
        value = self._tags.new(tensor, "constant")
        value.live = self._hidden or (self._arrays and not isinstance(tensor, nn.Parameter))
        value.fixed = not value.live
        value.learned = value.live or isinstance(tensor, nn.Parameter)
        value.mask = masks.looks_like_mask(tensor)
        value.counted = not value.learned and cells.looks_counted(tensor)
        return value.index

    def finish(self, result: Any) -> Recording:
        """Name the sites, and say what was returned and which parameters are not what they were."""
        indices = map(self._tags.index_of, tensors_in(result))
        self.recording.returned.update(index for index in indices if index is not None)
        name_sites(self.recording.sites, self.recording.calls)
        masks.unmark_pooled(self.recording)
        masks.mark_added(self.recording)
        self.recording.overwritten = self._tags.overwritten()
        return self.recording

    def clear(self) -> None:
        """Leave nothing behind on the tensors that ran through."""
        self._tags.clear()


def run_recorder(recorder: Recorder, forward: Callable[[], Any]) -> Recording:
    """Run ``forward`` under a recorder that its modules already hand their ops to."""
    hook = register_module_forward_hook(recorder.after)
    try:
        with _uncompiled(), scripts_shown:
            result = forward()
            if isinstance(result, Iterator):  # a generator: its modules run, one by one, while it is read
                result = list(result)
        return recorder.finish(result)
    finally:
        hook.remove()
        recorder.clear()


def _uncompiled() -> AbstractContextManager[Any]:
    """Runs what the model has compiled as it was written, so that its ops are seen."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        return nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


def _floats_in(made: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(made) if is_float(leaf)]
