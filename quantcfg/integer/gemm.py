"""Convolutions, linear layers and matrix products: integer products in a wide accumulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from quantcfg.errors import NumericError
from quantcfg.integer.call import Call
from quantcfg.integer.values import Sum, Term, integers_of, mark

EXACT = 2.0**53
"""Below it sums of integers are exact in float64."""

INT32_MAX = 2**31 - 1
_NARROW = 1 << 9  # more integers than a grid of 8 bits has, its zero point subtracted


def convolution(call: Call) -> Sum | None:
    """``conv1d`` to ``conv3d``, grouped, dilated or transposed; and ``linear``."""
    x, weight = call.term_at(0, "input"), call.term_at(1, "weight")
    if x is None or weight is None or not x.per_tensor:
        return None
    steps = call.run((0, "input", x.steps), (1, "weight", weight.steps), (2, "bias", None))
    scale = _per_output_channel(call, weight)
    bias = call.get(2, "bias")
    shape = _channel_shape(call.site.op, weight.steps)
    offset = None if bias is None else bias.double().reshape(shape)
    return Sum((Term(steps, x.scale * scale.reshape(shape)),), offset, has_bias=True)


def _per_output_channel(call: Call, weight: Term) -> Tensor:
    """The scale of a weight, one per output channel: with groups, a transposed convolution repeats them."""
    scale = weight.scale.reshape(-1)
    if call.site.op.startswith("conv_transpose"):
        return scale.repeat(int(call.get(6, "groups", 1))) if scale.numel() > 1 else scale
    return scale


def _channel_shape(op: str, weight: Tensor) -> tuple[int, ...]:
    """Broadcasts over the output: its channels are the last axis of linear, before the spatial axes else."""
    return (-1,) if op == "linear" else (-1, *[1] * (weight.dim() - 2))


def bilinear(call: Call) -> Sum | None:
    """``bilinear``: products of three integers."""
    left, right = call.term_at(0, "input1"), call.term_at(1, "input2")
    weight, bias = call.term_at(2, "weight"), call.get(3, "bias")
    if left is None or right is None or weight is None or not _all_per_tensor(left, right):
        return None
    steps = F.bilinear(left.steps, right.steps, weight.steps)
    scale = left.scale * right.scale * weight.scale.reshape(-1)
    return Sum((Term(steps, scale),), None if bias is None else bias.double(), has_bias=True)


def product(call: Call) -> Sum | None:
    """``matmul``, ``mm``, ``bmm``, ``dot`` and their like, of activations or with a constant."""
    left, right = call.term_at(0, "input"), call.term_at(1, "mat2")
    if right is None:
        right = call.term_at(1, "other")
    if left is None or right is None or not left.per_tensor:
        return None
    if not right.per_tensor and not _last_axis_only(right):
        return None
    steps = call.func(left.steps, right.steps)
    return Sum((Term(steps, left.scale * _last_axis(right)),))


def reversed_product(call: Call) -> Sum | None:
    """``x.__rmatmul__(y)``, which is ``y @ x``."""
    right, left = call.term_at(0, "input"), call.term_at(1, "other")
    if left is None or right is None or not left.per_tensor or not right.per_tensor:
        return None
    return Sum((Term(torch.matmul(left.steps, right.steps), left.scale * right.scale),))


def added_product(call: Call) -> Sum | None:
    """``addmm`` and its batched forms, whose first argument is a bias."""
    left, right = call.term_at(1, "mat1"), call.term_at(2, "mat2")
    bias = call.get(0, "input")
    scaled = call.get(3, "beta", 1) != 1 or call.get(4, "alpha", 1) != 1
    if left is None or right is None or scaled or not left.per_tensor:
        return None
    if not right.per_tensor and not _last_axis_only(right):
        return None
    zeros = torch.zeros(bias.shape, dtype=torch.float64, device=bias.device)
    steps = call.func(zeros, left.steps, right.steps)
    scale = left.scale * _last_axis(right)
    return Sum((Term(steps, scale),), bias.double(), has_bias=True)


def _last_axis_only(term: Term) -> bool:
    return term.scale.dim() > 0 and term.scale.shape[-1] == term.scale.numel()


def _last_axis(term: Term) -> Tensor:
    return term.scale if term.per_tensor else term.scale.reshape(-1)


def contraction(call: Call) -> Sum | None:
    """``einsum``, ``tensordot``, ``inner``, ``outer``: two tensors on grids of one scale each."""
    operands = call.tensors()
    keys = [key for key, _ in operands]
    terms = [call.term_at(key if isinstance(key, int) else len(call.args), str(key)) for key in keys]
    if len(terms) != 2 or any(term is None or not term.per_tensor for term in terms):
        return None
    first, second = (term for term in terms if term is not None)
    steps = call.replaced({keys[0]: first.steps, keys[1]: second.steps})
    return Sum((Term(steps, first.scale * second.scale),))


def embedding(call: Call) -> Sum | None:
    """Rows of a table of integers, each with its own scale where there is one per row."""
    weight = call.term_at(1, "weight")
    if weight is None:
        return None
    ids = call.get(0, "input")
    steps = F.embedding(ids, weight.steps)
    scale = weight.scale if weight.per_tensor else F.embedding(ids, weight.scale)
    return Sum((Term(steps, scale, weight.bounds),))


def embedding_bag(call: Call) -> Sum | None:
    """Sums or averages of rows, each on its own grid, that round once; bags of one length, unweighted."""
    weight, ids = call.term_at(1, "weight"), call.get(0, "input")
    mode = call.get(6, "mode", "mean")
    varying = (call.get(8, "per_sample_weights"), call.get(10, "padding_idx"))
    if weight is None or ids.dim() != 2 or mode not in ("sum", "mean") or varying != (None, None):
        return None
    share = 1.0 if mode == "sum" else 1.0 / ids.shape[1]
    scale = weight.scale if not weight.per_tensor else weight.scale.reshape(1, 1).expand(len(weight.steps), 1)
    return Sum(tuple(Term(weight.steps[row], scale[row] * share, weight.bounds) for row in ids.unbind(1)))


def attention(call: Call) -> Sum | None:
    """``scaled_dot_product_attention``: both products in integers, the softmax between them in float64.

    There is no grid between the two in the fake-quant model; here the probabilities are integers in steps of
    2**-22, whose products with 8 bits int32 can sum, or of 2**-24 where the values have more.
    """
    query, key, value = (call.term_at(i, name) for i, name in enumerate(("query", "key", "value")))
    if query is None or key is None or value is None or not _all_per_tensor(query, key, value):
        return None
    scale = call.kwargs.get("scale") or call.get(6, "scale") or query.steps.shape[-1] ** -0.5
    keys, values = (_grouped(t.steps, query.steps) for t in (key, value))
    scores = (query.steps @ keys.transpose(-2, -1)) * (query.scale * key.scale * scale)
    mask, causal = call.get(3, "attn_mask"), call.get(5, "is_causal", False)
    probabilities = _masked(scores, mask, causal=bool(causal)).softmax(-1).nan_to_num(0.0)
    unit = 2.0**24 if is_wide(value) else 2.0**22
    return Sum((Term((probabilities * unit).round() @ values, value.scale / unit),))


def is_wide(term: Term) -> bool:
    """Whether a tensor has more than 8 bits, so that 32 are not expected to hold sums of its products."""
    return term.bounds is not None and term.bounds[1] - term.bounds[0] >= _NARROW


def _all_per_tensor(*terms: Term) -> bool:
    return all(term.per_tensor for term in terms)


def _grouped(x: Tensor, query: Tensor) -> Tensor:
    """Keys or values of grouped-query attention, repeated for each head of the query."""
    if x.dim() < 3 or query.dim() < 3 or x.shape[-3] in (query.shape[-3], 1):
        return x
    return x.repeat_interleave(query.shape[-3] // x.shape[-3], -3)


def _masked(scores: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    if causal:
        keep = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~keep, -torch.inf)
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask.double()


def bounded(kernel: Callable[[Call], Sum | None], call: Call) -> float:
    """The largest magnitude that the accumulator of ``call`` can reach, its bias included.

    Every operand is taken at its magnitude, weights element by element and activations at the end of their
    grid, so that no partial sum in any order is larger.
    """

    def magnitude(x: Tensor) -> Tensor:
        found = integers_of(x)
        term = None if found is None else found.with_bias_in_steps().only
        if term is None:
            return x.detach().abs()
        largest = max(map(abs, term.bounds)) if term.bounds and not _is_weight(call, x) else None
        steps = term.steps.abs() if largest is None else torch.full_like(term.steps, float(largest))
        return mark(x.detach().abs(), Sum((replace(term, steps=steps),)))

    args = tuple(magnitude(x) if _is_float(x) else x for x in call.args)
    kwargs = {name: magnitude(x) if _is_float(x) else x for name, x in call.kwargs.items()}
    exact = kernel(replace(call, args=args, kwargs=kwargs))
    if exact is None:
        return 0.0
    steps = exact.with_bias_in_steps().terms[0].steps
    return float(steps.abs().max()) if steps.numel() else 0.0


def _is_float(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _is_weight(call: Call, x: Tensor) -> bool:
    slots = {operand.slot[0] for operand in call.site.weights}
    return any(value is x for key, value in call.tensors() if key in slots)


def refuse_inexact(name: str, largest: float) -> None:
    """Refuse an accumulator beyond what float64 counts exactly.

    Raises:
        NumericError: it is.
    """
    if largest >= EXACT:
        raise NumericError(f"{name}: its accumulator can reach {largest:.3g}; float64 is exact up to 2**53")
