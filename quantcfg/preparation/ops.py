"""What prepare knows about each torch function: its kind, its weights, and which arguments carry data.

Names are those of ``func.__name__`` with in-place marks, dunders and aliases taken off (`op_name`), so that
``x + y``, ``x.add(y)``, ``x += y`` and ``torch.add(x, y)`` are one op.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


class OpKind(Enum):
    """How an op takes part in quantization."""

    GEMM = "gemm"  # products and sums with a wide accumulator; may own weights
    COMPUTE = "compute"  # makes new values, gets a quantizer for its output
    MOVE = "move"  # moves values without changing them: stays on its input's grid
    CLIP = "clip"  # changes values but stays on its input's grid: relu, max pool, pad
    JOIN = "join"  # several tensors into one; on the grid of its inputs when they share one
    STATISTIC = "statistic"  # squares, roots and reciprocals inside norms: no int8 form worth having
    FLOAT = "float"  # known to have no quantized form
    CREATE = "create"  # makes a tensor from none


COMPUTING = (OpKind.GEMM, OpKind.COMPUTE, OpKind.JOIN)
"""Kinds of ops that make values of their own, and so would have a quantizer."""


@dataclass(frozen=True, slots=True)
class OpSpec:
    """One op. ``data`` and ``weights`` name arguments by position and by keyword; empty data means every one.

    ``weights`` maps the argument (position, keyword) to the channel axis of its output channels; an axis of
    None means that the axis depends on the number of dimensions (the last one).
    """

    kind: OpKind
    data: frozenset[int | str] = frozenset()
    weights: dict[int | str, int | None] = field(default_factory=dict)
    reason: str = ""
    outputs: int = 0  # the outputs that carry activations; 0 is all of them


def _conv(axis: int) -> OpSpec:
    return OpSpec(OpKind.GEMM, frozenset({0, "input"}), {1: axis, "weight": axis})


_FIRST: frozenset[int | str] = frozenset({0, "input"})
_GEMM = OpSpec(OpKind.GEMM)
_COMPUTE = OpSpec(OpKind.COMPUTE)
_NORM = OpSpec(OpKind.COMPUTE, _FIRST)
_MOVE = OpSpec(OpKind.MOVE, _FIRST | {"self", "tensor"})
_CLIP = OpSpec(OpKind.CLIP, _FIRST)
_JOIN = OpSpec(OpKind.JOIN)
_STATISTIC = OpSpec(OpKind.STATISTIC)
_CREATE = OpSpec(OpKind.CREATE)
_SCRIPT = OpSpec(OpKind.FLOAT, reason="TorchScript: its ops cannot be seen")
_RNN = OpSpec(OpKind.FLOAT, reason="recurrent cell: its gates are computed in one fused float op")

_ATTENTION_WEIGHTS: dict[int | str, int | None] = {
    5: 0, "in_proj_weight": 0, 11: 0, "out_proj_weight": 0,
    "q_proj_weight": 0, "k_proj_weight": 0, "v_proj_weight": 0,
}  # fmt: skip

OPS: dict[str, OpSpec] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv(0)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv(1)),
    "linear": _conv(0),
    "bilinear": OpSpec(OpKind.GEMM, frozenset({0, 1, "input1", "input2"}), {2: 0, "weight": 0}),
    "embedding": OpSpec(OpKind.GEMM, frozenset({"none"}), {1: 0, "weight": 0}),
    "embedding_bag": OpSpec(OpKind.GEMM, frozenset({"none"}), {1: 0, "weight": 0}, outputs=1),
    "deform_conv2d": OpSpec(OpKind.GEMM, _FIRST, {2: 0, "weight": 0}),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot"), _GEMM),
    "rmatmul": _GEMM,
    "addmm": OpSpec(OpKind.GEMM, frozenset({1, 2, "mat1", "mat2"})),
    "addmv": OpSpec(OpKind.GEMM, frozenset({1, 2, "mat", "vec"})),
    "addr": OpSpec(OpKind.GEMM, frozenset({1, 2, "vec1", "vec2"})),
    "addbmm": OpSpec(OpKind.GEMM, frozenset({1, 2, "batch1", "batch2"})),
    "baddbmm": OpSpec(OpKind.GEMM, frozenset({1, 2, "batch1", "batch2"})),
    **dict.fromkeys(("einsum", "tensordot", "inner", "outer", "chain_matmul", "linalg_multi_dot"), _GEMM),
    **dict.fromkeys(("grouped_mm", "_grouped_mm"), OpSpec(OpKind.GEMM, frozenset({0, 1, "input", "mat2"}))),
    "scaled_dot_product_attention": OpSpec(OpKind.GEMM, frozenset({0, 1, 2, "query", "key", "value"})),
    "multi_head_attention_forward": OpSpec(
        OpKind.GEMM, frozenset({0, 1, 2, "query", "key", "value"}), _ATTENTION_WEIGHTS, outputs=1,
        reason="one op of torch: its inputs, weights and output are on grids, all between them is in float",
    ),
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "addcmul", "addcdiv", "lerp"), _COMPUTE),
    **dict.fromkeys(("mean", "sum", "prod", "cumsum", "maximum", "minimum", "fmod", "remainder"), _COMPUTE),
    **dict.fromkeys(("sigmoid", "tanh", "silu", "gelu", "mish", "softplus", "softsign", "erf"), _NORM),
    **dict.fromkeys(("hardswish", "hardsigmoid", "elu", "celu", "selu", "leaky_relu", "prelu"), _NORM),
    **dict.fromkeys(("rrelu", "logsigmoid", "hardshrink", "softshrink", "tanhshrink", "glu"), _NORM),
    **dict.fromkeys(("softmax", "log_softmax", "softmin", "gumbel_softmax"), _NORM),
    **dict.fromkeys(("layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm"), _NORM),
    **dict.fromkeys(("local_response_norm", "normalize", "cosine_similarity"), _NORM),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _NORM),
    **dict.fromkeys(("lp_pool1d", "lp_pool2d", "lp_pool3d"), _NORM),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), _NORM),
    **dict.fromkeys(("interpolate", "upsample", "roi_align", "roi_pool"), _NORM),
    "grid_sample": OpSpec(OpKind.COMPUTE, frozenset({0, 1, "input", "grid"})),
    **dict.fromkeys(("sin", "cos", "exp", "log", "abs", "neg", "atan2", "sign"), _COMPUTE),
    **dict.fromkeys(("exp2", "expm1", "log2", "log10", "log1p"), _COMPUTE),
    **dict.fromkeys(("pad_sequence", "dstack", "column_stack", "row_stack", "block_diag"), _JOIN),
    **dict.fromkeys(("slice_scatter", "select_scatter", "diagonal_scatter"), _JOIN),
    **dict.fromkeys(("cat", "stack", "hstack", "vstack", "where"), _JOIN),
    **dict.fromkeys(("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"), _CLIP),
    **dict.fromkeys(("threshold", "pad", "masked_fill", "nan_to_num"), _CLIP),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "amax", "amin", "max", "min"), _CLIP),
    **dict.fromkeys(("fractional_max_pool2d", "fractional_max_pool3d"), _CLIP),
    **dict.fromkeys(("max_unpool1d", "max_unpool2d", "max_unpool3d", "cummax", "cummin", "msort"), _CLIP),
    **dict.fromkeys(("max_pool1d_with_indices", "max_pool2d_with_indices"), _CLIP),
    **dict.fromkeys(("max_pool3d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d"), _CLIP),
    **dict.fromkeys(("adaptive_max_pool3d", "topk", "sort", "median", "mode", "kthvalue"), _CLIP),
    **dict.fromkeys(("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "ravel"), _MOVE),
    **dict.fromkeys(("permute", "transpose", "t", "swapaxes", "swapdims", "movedim", "moveaxis"), _MOVE),
    **dict.fromkeys(("T", "mT", "H", "mH", "adjoint", "numpy_T", "squeeze", "unsqueeze"), _MOVE),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile"), _MOVE),
    **dict.fromkeys(("getitem", "select", "narrow", "index_select", "gather", "take"), _MOVE),
    **dict.fromkeys(("masked_select", "diagonal", "unbind", "chunk", "split", "split_with_sizes"), _MOVE),
    **dict.fromkeys(("tensor_split", "hsplit", "vsplit", "unfold", "fold", "as_strided"), _MOVE),
    **dict.fromkeys(("take_along_dim", "roll", "flip", "fliplr", "flipud", "dsplit"), _MOVE),
    **dict.fromkeys(("diag", "diagflat", "diag_embed", "positive", "pos"), _MOVE),
    **dict.fromkeys(("unsafe_chunk", "unsafe_split"), _MOVE),
    "copy": OpSpec(OpKind.MOVE, frozenset({1, "src", "other"})),
    **dict.fromkeys(("scatter_add", "scatter_reduce", "index_add", "cumprod", "diff"), _COMPUTE),
    **dict.fromkeys(("scatter", "index_copy"), OpSpec(OpKind.JOIN, _FIRST | {3, "src", "source"})),
    "masked_scatter": OpSpec(OpKind.JOIN, _FIRST | {2, "source"}),
    "index_put": OpSpec(OpKind.JOIN, _FIRST | {2, "values"}),
    "index_fill": _CLIP,
    "setitem": OpSpec(OpKind.FLOAT, frozenset({0, 2}), reason="its readers quantize what it writes"),
    **dict.fromkeys(("rot90", "tril", "triu", "contiguous", "clone", "detach", "alias", "identity"), _MOVE),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), _MOVE),
    **dict.fromkeys(("feature_dropout", "feature_alpha_dropout", "native_dropout"), _MOVE),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"), _MOVE),
    **dict.fromkeys(("to", "float", "double", "half", "bfloat16", "type", "type_as"), _MOVE),
    **dict.fromkeys(("cpu", "cuda"), _MOVE),
    **dict.fromkeys(("atleast_1d", "atleast_2d", "atleast_3d", "requires_grad", "data"), _MOVE),
    **dict.fromkeys(("real", "imag"), _MOVE),
    **dict.fromkeys(("view_as_real", "broadcast_tensors", "meshgrid", "nonzero"), _MOVE),
    **dict.fromkeys(("pow", "square", "rsqrt", "sqrt", "reciprocal", "var", "std", "norm"), _STATISTIC),
    **dict.fromkeys(("vector_norm", "linalg_norm", "linalg_vector_norm", "var_mean", "std_mean"), _STATISTIC),
    **dict.fromkeys(("logsumexp", "rpow", "rdiv", "frobenius_norm", "logcumsumexp"), _STATISTIC),
    "script": _SCRIPT,
    "quant_stub": _COMPUTE,
    "dequant_stub": OpSpec(OpKind.FLOAT),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"), _RNN),
    **dict.fromkeys(("rnn_tanh_cell", "rnn_relu_cell"), _RNN),
    **dict.fromkeys(("zeros", "ones", "full", "empty", "arange", "linspace", "eye", "tensor"), _CREATE),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones"), _CREATE),
    "empty_strided": _CREATE,
    **dict.fromkeys(("new_full", "new_empty", "new_tensor", "rand", "randn", "rand_like"), _CREATE),
    **dict.fromkeys(("randn_like", "scalar_tensor", "as_tensor", "from_numpy", "one_hot"), _CREATE),
    **dict.fromkeys(("bernoulli", "normal", "multinomial", "randint", "randperm", "logspace"), _CREATE),
    **dict.fromkeys(("uniform", "exponential", "asarray", "frombuffer", "from_dlpack"), _CREATE),
}  # fmt: skip

UNKNOWN = OpSpec(OpKind.FLOAT)
UNDER_TRANSFORM = OpSpec(OpKind.FLOAT, reason="runs under torch.func, where no statistics can be kept")
UNWRITTEN = frozenset({"empty", "empty_like", "new_empty", "empty_strided"})
"""Ops whose result holds whatever the memory held before."""

_OWN_ARGUMENT: frozenset[int | str] = frozenset({0, "input", "self"})
_OTHER_ARGUMENT: frozenset[int | str] = frozenset({1, "other"})

UNREAD: dict[str, frozenset[int | str]] = {
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like", "rand_like"), _OWN_ARGUMENT),
    **dict.fromkeys(("randn_like", "new_zeros", "new_ones", "new_full", "new_empty"), _OWN_ARGUMENT),
    **dict.fromkeys(("view_as", "reshape_as", "expand_as", "type_as", "to"), _OTHER_ARGUMENT),
}
"""The arguments of which an op takes the shape, the dtype or the device alone, and no element."""

# Python spellings of one op. An in-place mark (trailing `_`, `__i...__`) and dunders go first.
_ALIASES = {
    "radd": "add", "subtract": "sub", "multiply": "mul", "rmul": "mul", "truediv": "div",
    "true_divide": "div", "divide": "div", "rtruediv": "rdiv", "negative": "neg", "absolute": "abs",
    "concat": "cat", "concatenate": "cat", "clip": "clamp", "_max_pool1d": "max_pool1d",
    "_max_pool2d": "max_pool2d", "_max_pool3d": "max_pool3d", "boolean_dispatch": "max_pool2d",
    "linalg_matmul": "matmul", "constant_pad_nd": "pad", "_pad": "pad", "_threshold": "threshold",
    "log_sigmoid": "logsigmoid", "ger": "outer",
}  # fmt: skip

# Questions about a tensor rather than computations on it.
METADATA = frozenset({
    "size", "dim", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "is_complex", "item",
    "tolist", "len", "bool", "int_scalar", "index", "ndimension", "storage_offset", "data_ptr",
    "element_size", "get_device", "is_pinned", "has_names", "names", "hash", "repr", "format", "str",
    "is_nonzero", "numpy", "is_same_size", "allclose", "equal", "is_inference", "is_signed", "is_tensor",
    "result_type", "can_cast", "register_hook", "retain_grad", "backward", "requires_grad_", "set_",
    "resize_", "storage", "untyped_storage", "has_torch_function", "broadcast_shapes", "is_conj", "is_neg",
    "is_coalesced", "float_scalar", "array", "contains", "iter", "reduce_ex", "deepcopy", "setstate",
    "dlpack", "is_shared", "pin_memory",
})  # fmt: skip

TO_ARRAYS = frozenset({"numpy", "array", "tolist", "dlpack"})
"""Questions whose answers may be computed with where nobody sees it."""

READING = TO_ARRAYS | {
    "item", "bool", "int_scalar", "float_scalar", "index", "is_nonzero", "allclose", "equal", "contains",
}  # fmt: skip
"""Questions whose answers depend on the elements."""

FROM_ARRAYS = frozenset({
    "tensor", "as_tensor", "new_tensor", "from_numpy", "asarray", "frombuffer", "from_dlpack",
})  # fmt: skip
"""Ops that make a tensor from what such a computation leaves."""

RANDOM = frozenset({"rand", "randn", "rand_like", "randn_like", "normal", "uniform", "exponential"})
"""Ops that make other values each time: activations, as an input of the model is."""

DIFFERENTIATING = frozenset({"grad", "backward"})
"""``torch.autograd.grad`` and ``backward`` inside a forward."""

_DUNDER_SCALARS = {"__float__": "float_scalar", "__int__": "int_scalar", "__index__": "index"}
_INPLACE_DUNDERS = {
    f"__i{name}__": name
    for name in ("add", "sub", "mul", "truediv", "matmul", "mod", "pow", "and", "or", "xor", "floordiv")
}


def op_name(func: Callable[..., Any]) -> str:
    """Canonical name of a torch function: ``Tensor.__iadd__`` and ``torch.add`` are both ``add``."""
    name = getattr(func, "__name__", "") or ""
    if name == "__get__":
        return _getter_name(func)
    return canonical(name)


def canonical(name: str) -> str:
    """`op_name` of a ``__name__``."""
    found = _CANONICAL.get(name)
    if found is None:
        found = _CANONICAL[name] = _canonical(name)
    return found


_CANONICAL: dict[str, str] = {}


def _canonical(name: str) -> str:
    name = name.partition(".")[0]  # an overload, such as aten.linear.default
    if name in _DUNDER_SCALARS:
        return _DUNDER_SCALARS[name]
    if name in _INPLACE_DUNDERS:
        name = _INPLACE_DUNDERS[name]
    elif name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
    elif name.endswith("_") and not name.startswith("_") and name not in METADATA:
        name = name[:-1]
    return _ALIASES.get(name, name)


def _getter_name(func: Callable[..., Any]) -> str:
    name = getattr(getattr(func, "__self__", None), "__name__", "")
    return name if name in OPS else "size"  # every other property is a question


def is_inplace(name: str) -> bool:
    """Whether a ``__name__`` writes into its first argument."""
    return name in _INPLACE_DUNDERS or name == "__setitem__" or (
        name.endswith("_") and not name.endswith("__") and name not in METADATA
    )  # fmt: skip


_NO_NUMBER = -1e30


def spec_of(op: str) -> OpSpec:
    """The spec of an op, or that of an unknown one, which stays float."""
    return OPS.get(op, UNKNOWN)


def kind_of(op: str, spec: OpSpec, args: Any, kwargs: Any) -> OpKind:
    """The kind of an op where its arguments decide: nearest upsampling moves, a padding with 3.0 does not."""
    if spec.kind is OpKind.FLOAT:
        return spec.kind
    if op in ("interpolate", "upsample"):
        mode = kwargs.get("mode", args[3] if len(args) > 3 else "nearest")
        return OpKind.CLIP if str(mode).startswith("nearest") else spec.kind
    if op in ("masked_fill", "threshold"):
        filled = kwargs.get("value", args[2] if len(args) > 2 else 0.0)
        return OpKind.CLIP if not isinstance(filled, Tensor) and filled == 0 else OpKind.COMPUTE
    if op == "add" and _adds_zero(args):
        return OpKind.MOVE
    if op == "einsum" and _only_permutes(args):
        return OpKind.MOVE
    if op == "fold":
        return OpKind.COMPUTE if _overlap(args, kwargs) else spec.kind
    if op in ("pad", "scatter", "index_fill", "where", "pad_sequence", "nan_to_num"):
        scalars = [leaf for leaf in pytree.tree_leaves((args[1:], kwargs)) if isinstance(leaf, float)]
        least = op == "pad" and all(number <= _NO_NUMBER for number in scalars)  # what no maximum is
        return OpKind.COMPUTE if any(scalars) and not least else spec.kind
    if op in ("max", "min") and sum(isinstance(arg, Tensor) for arg in args) > 1:
        return OpKind.JOIN
    return spec.kind


def dim_of(args: Any, kwargs: Any) -> int | None:
    """The one dimension that an op on its first argument is told, counted from the last one: -1, -2, ..."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    given = kwargs.get("input", args[0] if args else None)
    if type(dim) is not int or not isinstance(given, Tensor):
        return None
    return dim if dim < 0 else dim - given.dim()


def exponent_of(op: str, args: Any, kwargs: Any) -> float | None:
    """The number that a power is taken to; None where there is none, or it is a tensor."""
    exponent = kwargs.get("exponent", args[1] if len(args) > 1 else None)
    return float(exponent) if op == "pow" and isinstance(exponent, int | float) else None


def equation_of(op: str, args: Any) -> str:
    """What an einsum is told in letters; nothing where it is told in numbers."""
    return args[0] if op == "einsum" and isinstance(args[0], str) else ""


def _adds_zero(args: Any) -> bool:
    """Whether a sum is with the whole number 0, which Python's ``sum`` begins with."""
    return len(args) == 2 and any(type(arg) is int and arg == 0 for arg in args)


def _only_permutes(args: Any) -> bool:
    """Whether an einsum is of one tensor and adds up none of its elements."""
    equation = args[0] if args else None
    if not isinstance(equation, str) or "," in equation:
        return False
    given, arrow, made = equation.replace(" ", "").replace("...", ".").partition("->")
    once = {letter for letter in given if given.count(letter) == 1}
    return set(given) <= (set(made) if arrow else once)


_OF_FOLD = ("input", "output_size", "kernel_size", "dilation", "padding", "stride")


def _overlap(args: Any, kwargs: Any) -> bool:
    """Whether ``F.fold`` adds up patches that share pixels; others it only moves."""
    given = dict(zip(_OF_FOLD, args, strict=False)) | kwargs
    return given.get("stride", 1) != given["kernel_size"] or given.get("dilation", 1) not in (1, (1, 1))
