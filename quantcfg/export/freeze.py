"""A prepared model made ready for export: weights are integers, activations quantize and dequantize."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantcfg.export.deployed import sharing_copy
from quantcfg.export.grids import Storage, storage_of
from quantcfg.export.ops import Ops
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.numeric.qparams import QParams, along, quantize
from quantcfg.preparation.hosts import FakeQuants
from quantcfg.preparation.intercept import interceptor_of
from quantcfg.preparation.record import Operand, Site, Slot, Value
from quantcfg.preparation.run import Action, Runner
from quantcfg.preparation.state import FakeQuantState, prepared, set_fake_quantize


class Frozen(nn.Module):
    """What stands in the place of a fake quantize module, with its qparams bit for bit.

    Shapes:
        scale, zero_point: ``()`` per tensor, ``(C,)`` per channel, as ONNX has them; float32 and the storage
        type.
    """

    least_bits: ClassVar[int] = 4
    observing: ClassVar[bool] = False
    quantizing: ClassVar[bool] = True
    scale: Tensor
    zero_point: Tensor

    def __init__(self, source: FakeQuantizeBase, ops: Ops) -> None:
        super().__init__()
        self.name = source.name
        self.grid = (source.quant_min, source.quant_max)
        self.dtype_name = source.dtype.name
        self.qscheme = str(source.qscheme).removeprefix("torch.")
        self.storage: Storage = storage_of(source.dtype, least_bits=self.least_bits)
        self.ops = ops
        qparams = source.qparams()
        self.axis = source.ch_axis if qparams.scale.numel() > 1 or source.ch_axis >= 0 else -1
        shape = () if self.axis < 0 else (-1,)
        self.register_buffer("scale", qparams.scale.detach().clone().reshape(shape))
        zero_point = qparams.zero_point.detach().reshape(shape)
        self.register_buffer("zero_point", zero_point.to(self.storage.torch_dtype, copy=True))

    @property
    def _how(self) -> dict[str, Any]:
        return {"axis": self.axis, "storage": self.storage.name, "name": self.name}

    def _dequantize(self, integers: Tensor) -> Tensor:
        return self.ops.dequantize(integers, self.scale, self.zero_point, **self._how)


class FrozenActivation(Frozen):
    """Quantizes and dequantizes what passes.

    A grid narrower than its storage clips in real units first: the ends of the grid divide to their own
    integers, so the result is that of the narrow grid.
    """

    least_bits = 8
    low: Tensor
    high: Tensor

    def __init__(self, source: FakeQuantizeBase, ops: Ops) -> None:
        super().__init__(source, ops)
        self.clips = self.grid != self.storage.bounds
        zero_point = self.zero_point.int()
        self.register_buffer("low", (self.grid[0] - zero_point) * self.scale, persistent=self.clips)
        self.register_buffer("high", (self.grid[1] - zero_point) * self.scale, persistent=self.clips)

    def integers(self, x: Tensor) -> Tensor:
        """The integers of ``x``, in the storage type."""
        x = x.to(self.scale.dtype)
        if self.clips:
            x = x.minimum(along(self.high, x, self.axis)).maximum(along(self.low, x, self.axis))
        return self.ops.quantize(x, self.scale, self.zero_point, **self._how)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` on its grid."""
        return self._dequantize(self.integers(x)).to(x.dtype)


class FrozenWeight(Frozen):
    """Gives a constant, kept as integers, in the place of the tensor it is called with."""

    integers: Tensor

    def __init__(self, source: FakeQuantizeBase, ops: Ops, constant: Tensor) -> None:
        super().__init__(source, ops)
        qparams = QParams(*source.qparams())
        steps = quantize(
            constant, qparams, quant_min=self.grid[0], quant_max=self.grid[1], ch_axis=source.ch_axis
        )
        self.register_buffer("integers", steps.to(self.storage.torch_dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """The constant on its grid, in the dtype of ``weight``."""
        return self._dequantize(self.integers).to(weight.dtype)


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """A frozen copy of a prepared model, and its quantizers by name."""

    model: nn.Module
    weights: dict[str, FrozenWeight]
    activations: dict[str, FrozenActivation]

    @property
    def quantizers(self) -> dict[str, Frozen]:
        """All of them by name."""
        return {**self.weights, **self.activations}


@torch.no_grad()
def freeze(model: nn.Module, run: Callable[[nn.Module], Any], ops: Ops) -> FrozenModel:
    """Return a frozen copy of a prepared model that has all its qparams; the original is not changed.

    Args:
        model: the prepared model, calibrated or trained.
        run: runs the model once, so that weights computed from parameters are seen as the ops see them.
        ops: what quantizes and dequantizes in the copy.
    """
    copied = sharing_copy(model).eval()
    set_fake_quantize(copied, FakeQuantState.VALIDATION)
    constants = _constant_quantizers(copied)
    seen = _seen_by(constants, copied, run)
    frozen: dict[FakeQuantizeBase, Frozen] = {
        source: FrozenWeight(source, ops, seen[source]) if source in seen else FrozenActivation(source, ops)
        for source in prepared(copied).modules.values()
    }
    _swap(copied, frozen)
    _drop_float_weights(copied)
    return FrozenModel(
        copied,
        {m.name: m for m in frozen.values() if isinstance(m, FrozenWeight)},
        {m.name: m for m in frozen.values() if isinstance(m, FrozenActivation)},
    )


def site_actions(model: nn.Module) -> Iterator[tuple[Site, Action]]:
    """The recorded sites at which a prepared model does something, in the order they ran."""
    interceptor = interceptor_of(model)
    assert interceptor is not None
    assert isinstance(interceptor.handler, Runner)
    for site in prepared(model).recording.sites:
        action = interceptor.handler.action_at(site)
        if action is not None:
            yield site, action


def _constant_quantizers(model: nn.Module) -> set[FakeQuantizeBase]:
    """Quantizers of weights, and of parameters and buffers that enter an op as they are.

    A slice of a parameter does not count outside of weights: its length may depend on the input.
    """
    recording = prepared(model).recording
    found: set[FakeQuantizeBase] = set()
    for site, action in site_actions(model):
        values = {operand.slot: recording.values[operand.value] for operand in site.weights}
        found.update(fq for slot, fq in action.weights if _is_owned(values[slot]) or values[slot].fixed)
        found.update(fq for _, key, fq in action.edges if _is_owned(recording.values[key]))
    return found


def _is_owned(value: Value) -> bool:
    return value.kind in ("parameter", "buffer")


def _seen_by(
    quantizers: set[FakeQuantizeBase], model: nn.Module, run: Callable[[nn.Module], Any]
) -> dict[FakeQuantizeBase, Tensor]:
    """The tensor that each quantizer is given; one that is given different ones is left out."""
    seen: dict[FakeQuantizeBase, Tensor] = {}
    varying: set[FakeQuantizeBase] = set()

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, FakeQuantizeBase)
        if not torch.equal(seen.setdefault(module, args[0].detach().clone()), args[0]):
            varying.add(module)

    hooks = [quantizer.register_forward_pre_hook(note) for quantizer in quantizers]
    try:
        run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return {quantizer: tensor for quantizer, tensor in seen.items() if quantizer not in varying}


def _swap(model: nn.Module, frozen: dict[FakeQuantizeBase, Frozen]) -> None:
    actions: Any = [action for _, action in site_actions(model)]
    for action in actions:
        action.weights = [(slot, frozen.get(fq, fq)) for slot, fq in action.weights]
        action.edges = [(slot, key, frozen.get(fq, fq)) for slot, key, fq in action.edges]
        action.output = frozen.get(action.output, action.output)
    for container in [module for module in model.modules() if isinstance(module, FakeQuants)]:
        for key, source in list(container.items()):
            container[key] = frozen[source]  # type: ignore[index]


def _drop_float_weights(model: nn.Module) -> None:
    """Let parameters whose every reader has the integers hold one number, so that no file stores them."""
    values, owners = prepared(model).recording.values, dict(model.named_modules())
    replaced = Counter(operand.value for operand in _replaced_operands(model))
    for index, num_readers in replaced.items():
        value = values[index]
        path, _, name = value.name.rpartition(".")
        if value.kind == "parameter" and num_readers == len(value.consumers):
            parameter = owners[path]._parameters[name]
            assert parameter is not None
            parameter.data = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)


def _replaced_operands(model: nn.Module) -> Iterator[Operand]:
    for site, action in site_actions(model):
        quantizers: list[tuple[Slot, nn.Module]] = [*action.weights]
        frozen = {slot for slot, quantizer in quantizers if isinstance(quantizer, FrozenWeight)}
        yield from (operand for operand in site.weights if operand.slot in frozen)
