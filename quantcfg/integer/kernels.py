"""Which op has which integer kernel. An op without one is computed in float between integers, and counted."""

from __future__ import annotations

from collections.abc import Callable

from quantcfg.integer import gemm, normalize, pointwise, reduce
from quantcfg.integer.call import Call
from quantcfg.integer.moves import join
from quantcfg.integer.values import Sum

Kernel = Callable[[Call], Sum | None]
"""What the op makes, exactly; None where its arguments are not of the kind that it knows."""

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")

GEMMS: dict[str, Kernel] = {
    **dict.fromkeys((*_CONVOLUTIONS, "linear"), gemm.convolution),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), gemm.product),
    "rmatmul": gemm.reversed_product,
    **dict.fromkeys(("addmm", "baddbmm"), gemm.added_product),
    **dict.fromkeys(("einsum", "tensordot", "inner", "outer"), gemm.contraction),
    "scaled_dot_product_attention": gemm.attention,
    "bilinear": gemm.bilinear,
}
"""Ops with an accumulator."""

_TABLES = (
    "sigmoid", "tanh", "silu", "gelu", "mish", "softplus", "softsign", "erf", "hardswish", "hardsigmoid",
    "elu", "celu", "selu", "leaky_relu", "logsigmoid", "hardshrink", "softshrink", "tanhshrink", "div",
    "fmod", "remainder", "sin", "cos", "exp", "log", "abs", "neg", "sign", "quant_stub",
)  # fmt: skip

KERNELS: dict[str, Kernel] = {
    **GEMMS,
    "embedding": gemm.embedding,
    "embedding_bag": gemm.embedding_bag,
    **dict.fromkeys(("add", "sub", "rsub"), pointwise.add_or_table),
    "mul": pointwise.mul,
    **dict.fromkeys(_TABLES, pointwise.table),
    "prelu": pointwise.prelu,
    **dict.fromkeys(("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"), pointwise.clip),
    **dict.fromkeys(("mean", "sum"), reduce.mean),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), reduce.avg_pool),
    **dict.fromkeys(
        ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), reduce.adaptive_avg_pool
    ),
    "softmax": normalize.softmax,
    "layer_norm": normalize.layer_norm,
    "group_norm": normalize.group_norm,
    "batch_norm": normalize.batch_norm,
    **dict.fromkeys(("cat", "stack", "hstack", "vstack", "where", "maximum", "minimum", "max", "min"), join),
}  # fmt: skip

TABLES = frozenset((*_TABLES, "prelu"))
