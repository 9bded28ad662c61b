"""Ops that move, select or join values: done on the integers as on the real numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from quantcfg.integer.call import Call
from quantcfg.integer.values import Sum, Term, integers_of, quantize, requantize
from quantcfg.preparation.ops import OpKind, is_inplace

_UNCHANGED = frozenset(
    {"to", "float", "half", "bfloat16", "type", "type_as", "data", "double", "dropout", "identity", "detach"}
)


def moved(call: Call) -> list[Sum | None]:
    """The integers of each tensor that an op makes which moves, selects or joins; nothing where unknown."""
    if call.site.kind is OpKind.JOIN:
        return _joined(call)
    key: int | str = call.site.data[0].slot[0] if call.site.data else 0
    exact = integers_of(call.args[key] if isinstance(key, int) and key < len(call.args)
                        else call.kwargs.get(str(key)))  # fmt: skip
    if exact is None:
        return []
    return [exact] if call.site.op in _UNCHANGED else _moved(call, key, exact)


def _moved(call: Call, key: int | str, exact: Sum) -> list[Sum | None]:
    term = exact.with_bias_in_steps().only
    if term is not None and term.per_tensor:
        leaves = pytree.tree_leaves(_run(call, key, term.steps))
        return [_on_same_grid(leaf, term) for leaf in leaves if isinstance(leaf, Tensor)]
    if call.site.kind is not OpKind.MOVE:
        return []  # a maximum over values whose steps differ
    return [exact.mapped(lambda part: _one(_run(call, key, part)))]


def _run(call: Call, key: int | str, part: Tensor) -> Any:
    written = is_inplace(call.site.spelling)
    return call.replaced({key: part.clone() if written else part})


def _one(made: Any) -> Tensor:
    leaf = pytree.tree_leaves(made)[0]
    assert isinstance(leaf, Tensor)
    return leaf


def _on_same_grid(leaf: Tensor, term: Term) -> Sum | None:
    return Sum((Term(leaf, term.scale, term.bounds),)) if leaf.is_floating_point() else None


def _joined(call: Call) -> list[Sum | None]:
    """Tensors of one grid put together."""
    found = [leaf for leaf in _leaves(call) if _is_float(leaf)]
    terms = [exact.only if (exact := integers_of(leaf)) is not None else None for leaf in found]
    first = terms[0] if terms else None
    if first is None or any(t is None or not t.per_tensor or t.scale != first.scale for t in terms):
        return []
    made = _with_leaves(call, lambda leaf: integers_of(leaf).terms[0].steps)  # type: ignore[union-attr]
    return [_on_same_grid(leaf, first) for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor)]


def join(call: Call) -> Sum | None:
    """``cat``, ``where``, ``maximum`` and so on: each tensor onto the grid of the output, then the op."""
    quantizer = call.output
    if quantizer is None or quantizer.ch_axis >= 0:
        return None

    def on_output_grid(leaf: Any) -> Tensor:
        exact = integers_of(leaf)
        if exact is not None:
            return requantize(exact, quantizer).terms[0].steps
        real = leaf if isinstance(leaf, Tensor) else torch.tensor(float(leaf))
        return quantize(real, quantizer).terms[0].steps

    made = _with_leaves(call, on_output_grid)
    if not isinstance(made, Tensor):
        return None
    low, high = _grid_bounds(call)
    scale = quantizer.qparams().scale.double().reshape(())
    return Sum((Term(made, scale, (low, high)),))


def _grid_bounds(call: Call) -> tuple[int, int]:
    assert call.output is not None
    zero_point = int(call.output.qparams().zero_point)
    return call.output.quant_min - zero_point, call.output.quant_max - zero_point


def _leaves(call: Call) -> list[Any]:
    return pytree.tree_leaves((call.args, call.kwargs))


def _with_leaves(call: Call, change: Any) -> Any:
    def changed(leaf: Any) -> Any:
        number = isinstance(leaf, float) and call.site.op == "where"
        return change(leaf) if _is_float(leaf) or number else leaf

    args, kwargs = pytree.tree_map(changed, (call.args, call.kwargs))
    return call.func(*args, **kwargs)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
