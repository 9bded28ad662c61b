"""Multiply-accumulates of the ops that have them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

Shape = tuple[int, ...]
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
CELLS = ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")


def macs(op: str, operands: Sequence[Shape], weights: Sequence[Shape], output_size: int) -> int:
    """Multiply-accumulates of one GEMM or recurrent layer, biases aside; 0 for a look-up.

    Args:
        op: canonical name.
        operands: shapes of its tensor arguments in order: input first, then weight.
        weights: shapes of those that are weights.
        output_size: elements of the first output.
    """
    first, second = (*operands, (), ())[:2]
    if op in RECURRENT or op in CELLS:
        matrices = [shape for shape in operands[1:] if len(shape) == 2]  # a cell's state stands before them
        return prod(first[:-1]) * sum(map(prod, matrices[-2:] if op in CELLS else matrices))
    if op.startswith("embedding") or not first:
        return 0
    if op.startswith("conv_transpose"):
        return prod(first) * prod(second[1:])
    if op.startswith("conv") or op in ("linear", "deform_conv2d"):
        return output_size * prod(second[1:])
    if op == "multi_head_attention_forward":
        projections = sum(prod(shape) for shape in weights) * prod(first[:-1])
        return projections + 2 * prod(first) * second[0]
    if op == "scaled_dot_product_attention":
        return 2 * prod(first) * second[-2]
    if op in ("outer", "addr"):
        return output_size
    return output_size * (second if op in ("addmm", "addmv", "addbmm", "baddbmm") else first)[-1]
