"""Integers and what they stand for, and the one rule by which they get from one grid to another.

Integers lie in float64 tensors: sums and products of integers are exact there below 2**53, in any order, and
every op of torch exists. `quantcfg.integer.gemm` sees to it that no accumulator leaves that range.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.numeric.qparams import along

Bounds = tuple[int, int]
_TAG = "_quantcfg_integers"


@dataclass(frozen=True, slots=True)
class Term:
    """``steps * scale``.

    Shapes:
        steps: float64 that holds integers, the zero point already subtracted.
        scale: float64, broadcasts over ``steps``; in real units per step.

    ``bounds`` are the lowest and highest step that can occur, where the grid says so.
    """

    steps: Tensor
    scale: Tensor
    bounds: Bounds | None = None

    @property
    def per_tensor(self) -> bool:
        """Whether all steps are worth the same."""
        return self.scale.numel() == 1


@dataclass(frozen=True, slots=True)
class Sum:
    """A real tensor, exactly: the sum of ``terms`` and ``offset``, clipped to ``[low, high]``.

    One term is a tensor on a grid, or an accumulator; several are what an add joins before anything rounds.
    ``has_bias`` says that ``offset`` is the bias of the first term's accumulator, which holds it in int32.
    """

    terms: tuple[Term, ...]
    offset: Tensor | None = None
    low: float = -math.inf
    high: float = math.inf
    has_bias: bool = False

    @property
    def only(self) -> Term | None:
        """The term of a sum that has one and nothing else."""
        plain = self.offset is None and self.low == -math.inf and self.high == math.inf
        return self.terms[0] if plain and len(self.terms) == 1 else None

    def with_bias_in_steps(self) -> Sum:
        """The bias rounded to the accumulator's steps: ``round_half_even(bias / scale)``."""
        if self.offset is None or not self.has_bias:
            return self
        first = self.terms[0]
        steps = first.steps + (self.offset / first.scale).round()
        return replace(self, terms=(Term(steps, first.scale), *self.terms[1:]), offset=None, has_bias=False)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Sum:
        """The sum with ``change``, which only moves values, applied to everything in it."""
        terms = tuple(
            Term(change(t.steps), t.scale if t.per_tensor else change(t.scale.expand_as(t.steps)), t.bounds)
            for t in self.terms
        )
        offset = self.offset
        if offset is not None and offset.numel() > 1:
            offset = change(offset.expand_as(self.terms[0].steps))
        return replace(self, terms=terms, offset=offset)

    def real(self, dtype: torch.dtype) -> Tensor:
        """The real tensor. One step times its scale is rounded once: the bits of dequantization."""
        exact = self.with_bias_in_steps()
        total = _total([t.steps * t.scale for t in exact.terms], exact.offset)
        if math.isfinite(self.low) or math.isfinite(self.high):
            total = total.clamp(self.low, self.high)
        return total.to(torch.promote_types(dtype, torch.float32)).to(dtype)


def requantize(exact: Sum, quantizer: FakeQuantizeBase) -> Sum:
    """Onto the grid of ``quantizer``: the one rule by which integers become other integers.

        q = clamp(round_half_even(sum(steps * (scale / out_scale))) + zero_point, quant_min, quant_max)

    ``scale`` of a product is the product of the float32 scales, exact in float64. There is one rounding to an
    integer, whatever the number of terms. The bias of an accumulator was rounded to its steps before. A clip
    (ReLU, ReLU6) bounds the integers at ``round_half_even(bound / out_scale)``.

    Returns:
        The integers ``q - zero_point``.
    """
    exact = exact.with_bias_in_steps()
    shape = broadcast_shapes(*(t.steps.shape for t in exact.terms))
    grid = grid_of(quantizer, torch.empty(shape, device="meta"))
    offset = None if exact.offset is None else exact.offset / grid.scale
    steps = _total([t.steps * (t.scale / grid.scale) for t in exact.terms], offset).round()
    if math.isfinite(exact.low):
        steps = steps.maximum((exact.low / grid.scale).round())
    if math.isfinite(exact.high):
        steps = steps.minimum((exact.high / grid.scale).round())
    return grid.holding(steps.minimum(grid.highest).maximum(grid.lowest))


def quantize(x: Tensor, quantizer: FakeQuantizeBase) -> Sum:
    """A real tensor onto the grid of ``quantizer``, by the formula of the fake-quant model."""
    grid = grid_of(quantizer, x)
    real: Tensor = quantizer(x.to(torch.promote_types(x.dtype, torch.float32)))
    return grid.holding((real.double() / grid.scale).round())


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a quantizer puts values: float64 tensors that broadcast over what it quantizes."""

    scale: Tensor
    lowest: Tensor
    highest: Tensor
    bounds: Bounds | None

    def holding(self, steps: Tensor) -> Sum:
        """``steps`` on this grid."""
        return Sum((Term(steps, self.scale, self.bounds),))


def grid_of(quantizer: FakeQuantizeBase, x: Tensor) -> Grid:
    """The grid of ``quantizer`` for a tensor of the shape of ``x``, less its zero point."""
    qparams = quantizer.qparams()
    axis = quantizer.ch_axis
    scale = along(qparams.scale.double(), x, axis)
    zero_point = along(qparams.zero_point.double(), x, axis)
    lowest, highest = quantizer.quant_min - zero_point, quantizer.quant_max - zero_point
    if scale.numel() == 1:
        scale, lowest, highest = scale.reshape(()), lowest.reshape(()), highest.reshape(())
    return Grid(scale, lowest, highest, (int(lowest.min()), int(highest.max())))


def broadcast_shapes(*shapes: torch.Size) -> torch.Size:
    """The shape that all of these broadcast to."""
    found: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return found


def _total(parts: list[Tensor], offset: Tensor | None) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total if offset is None else total + offset


def mark(x: Tensor, exact: Sum) -> Tensor:
    """Note on a real tensor which integers it stands for, until something writes into it."""
    setattr(x, _TAG, (exact, _version(x)))
    return x


def integers_of(x: object) -> Sum | None:
    """The integers that a real tensor stands for; None where it is an ordinary one by now."""
    found = getattr(x, _TAG, None)
    if found is None or not isinstance(x, Tensor):
        return None
    exact: Sum = found[0]
    unwritten = torch.equal(exact.real(x.dtype), x) if x.is_inference() else found[1] == _version(x)
    return exact if unwritten else None


def _version(x: Tensor) -> int:
    """How often something was written into the memory of ``x``; inference tensors do not count."""
    return -1 if x.is_inference() else x._version
