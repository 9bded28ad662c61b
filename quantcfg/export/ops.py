"""Quantize and dequantize as single ops that an exporter can translate, and the same as plain torch ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quantcfg.export.grids import storage_named
from quantcfg.numeric.qparams import along


class Op(Protocol):
    """``x`` to integers, or integers to float32.

    ``storage`` is the name of a `Storage`, ``axis`` is -1 per tensor, and ``name`` is that of the quantizer,
    for whoever reads the program.
    """

    def __call__(
        self, x: Tensor, scale: Tensor, zero_point: Tensor, /, *, axis: int, storage: str, name: str
    ) -> Tensor:
        """Compute it."""


@dataclass(frozen=True, slots=True)
class Ops:
    """The two functions that a frozen model calls."""

    quantize: Op
    dequantize: Op


def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int, storage: str, name: str) -> Tensor:
    del name
    kind = storage_named(storage)
    steps = (x / along(scale, x, axis)).round() + along(zero_point.int(), x, axis)
    return steps.clamp(*kind.bounds).to(kind.torch_dtype)


def _dequantize(
    q: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int, storage: str, name: str
) -> Tensor:
    del storage, name
    steps = q.int() - along(zero_point.int(), q, axis)
    return steps.to(scale.dtype) * along(scale, q, axis)


@torch.library.custom_op("quantcfg::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int, storage: str, name: str) -> Tensor:
    """ONNX's QuantizeLinear: ``saturate(round_half_even(x / scale) + zero_point)``."""
    return _quantize(x, scale, zero_point, axis=axis, storage=storage, name=name)


@quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int, storage: str, name: str) -> Tensor:
    del scale, zero_point, axis, name
    return torch.empty_like(x, dtype=storage_named(storage).torch_dtype)


@torch.library.custom_op("quantcfg::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int, storage: str, name: str) -> Tensor:
    """ONNX's DequantizeLinear: ``(q - zero_point) * scale``."""
    return _dequantize(q, scale, zero_point, axis=axis, storage=storage, name=name)


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int, storage: str, name: str) -> Tensor:
    del zero_point, axis, storage, name
    return torch.empty_like(q, dtype=scale.dtype)


SINGLE = Ops(torch.ops.quantcfg.quantize, torch.ops.quantcfg.dequantize)
"""Each an op of its own, which an exporter translates."""

PLAIN = Ops(_quantize, _dequantize)
"""Division, rounding, clamping: a file made of these needs nothing of quantcfg to be run."""
