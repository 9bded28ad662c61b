"""Multiply-accumulates of the ops that have them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import isqrt, prod
from typing import Any

from quantcfg.preparation.channels import Shape, axes_of

RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
CELLS = ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")


def macs(
    op: str, operands: Sequence[Shape], weights: Sequence[Shape], output_size: int, told: Any = None
) -> int:
    """Multiply-accumulates of one GEMM or recurrent layer, biases aside; 0 for a look-up.

    Args:
        op: canonical name.
        operands: shapes of its tensor arguments in order: input first, then weight.
        weights: shapes of those that are weights.
        output_size: elements of the first output.
        told: its first argument, which of an einsum is the equation.
    """
    first, second = (*operands, (), ())[:2]
    if op in RECURRENT or op in CELLS:
        matrices = [shape for shape in operands[1:] if len(shape) == 2]  # a cell's state stands before them
        return prod(first[:-1]) * sum(map(prod, matrices[-2:] if op in CELLS else matrices))
    if op.startswith("embedding") or not first:
        return 0
    if op.startswith("conv_transpose"):
        return prod(first) * prod(second[1:])
    if op.startswith("conv") or op == "linear":
        return output_size * prod(second[1:])
    if op in ("bilinear", "deform_conv2d"):
        return output_size * prod(operands[2][1:])
    if op == "multi_head_attention_forward":
        return _projections(first, second, weights) + 2 * prod(first) * second[0]
    if op == "scaled_dot_product_attention":
        return (prod(first) + output_size) * second[-2]
    if op in ("outer", "addr"):
        return output_size
    if op == "einsum" and isinstance(told, str):
        return _einsum(told, operands)
    if op in ("chain_matmul", "linalg_multi_dot"):
        return _chain(operands)
    if op == "tensordot":
        return isqrt(prod(first) * prod(second) * output_size)  # each axis is in two of the three
    if op == "addbmm":
        return prod(second) * operands[2][-1]
    return output_size * (second if op in ("addmm", "addmv", "baddbmm") else first)[-1]


def _projections(query: Shape, key: Shape, weights: Sequence[Shape]) -> int:
    """Those of queries, keys and values, whose weights are three or packed into one, and of the output."""
    queries, keys, sizes = prod(query[:-1]), prod(key[:-1]), [prod(shape) for shape in weights]
    if len(sizes) == 2:
        packed, out = sizes
        sizes = [out, *[packed // 3] * 3]
    return sum(sizes[:2]) * queries + sum(sizes[2:]) * keys


def _chain(matrices: Sequence[Shape]) -> int:
    """Those of a product of matrices in the order that takes the least, as torch orders it.

    The first may be a vector, which is a row then, and so may the last, a column.
    """
    rows = [1, *(shape[0] for shape in matrices[1:])]
    if len(matrices[0]) == 2:
        rows[0] = matrices[0][0]
    sizes = [*rows, matrices[-1][1] if len(matrices[-1]) == 2 else 1]

    @cache
    def least(first: int, last: int) -> int:
        halves = (
            least(first, end) + least(end + 1, last) + sizes[first] * sizes[end + 1] * sizes[last + 1]
            for end in range(first, last)
        )
        return min(halves, default=0)

    return least(0, len(matrices) - 1)


def _einsum(equation: str, operands: Sequence[Shape]) -> int:
    """The product of all its axes, those that stand for dots among them, which count from the right."""
    lengths: dict[str, int] = {}
    for axes, shape in zip(axes_of(equation, operands)[0], operands, strict=False):
        lengths |= {
            axis: max(length, lengths.get(axis, 1)) for axis, length in zip(axes, shape, strict=False)
        }
    return prod(lengths.values())
