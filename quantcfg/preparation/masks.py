"""Recognising attention masks, whose -inf must never meet a quantizer, nor its inf where it is subtracted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Recording, Site, Value

CARRIERS = frozenset({
    "add", "sub", "rsub", "mul", "div", "neg", "masked_fill", "where", "cat", "stack", "maximum", "minimum",
    "pad", "setitem", "max", "min", "amax", "amin", "topk", "sort", "clamp", "index_fill", "index_copy",
    "index_put", "index_add", "scatter", "scatter_add", "masked_scatter", "addcmul", "lerp", "nan_to_num",
    "log_softmax", "threshold", "addmm", "addbmm", "baddbmm", "cumsum",
})  # fmt: skip
"""Ops whose result still holds the mask of an operand; a softmax, for one, does not."""

ORDINARY = frozenset({
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear",
    "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm",
    "relu", "relu6", "gelu", "silu", "hardswish", "sigmoid", "tanh",
})  # fmt: skip
"""Ops that make no mask of what is none: looking through their results would take as long as some of them."""

# Masks are written as -inf, as the dtype's minimum, as -10000 (older code), or as -100 (Swin).
# What is subtracted is written the other way round: as inf, 1e9 or 10000.
_SURELY_MASK = -9999.0
_NO_UNIT = 1e6  # what an input is multiplied by to have it in other units is less
_MAYBE_MASK = -20.0
_NO_ACTIVATION = 1e30
SUMS = ("add", "sub")
_SOFTMAXES = ("softmax", "log_softmax")
_GREATEST = ("max", "amax", "min", "amin", "topk", "sort", "logsumexp")
_REPLACING = ("nan_to_num", "masked_fill", "where")
_WRITERS = frozenset({
    "masked_fill", "where", "full", "full_like", "new_full", "fill", "setitem", "index_fill", "scatter",
    "pad", "threshold",
})  # fmt: skip


def has_sentinel(tensor: Tensor) -> bool:
    """Whether an activation holds an infinity, or a value that only a mask can have put there."""
    lowest, highest = _range(tensor)
    return lowest <= -_NO_ACTIVATION or highest >= _NO_ACTIVATION


def looks_like_mask(tensor: Tensor) -> bool:
    """Whether a constant is a mask: hugely negative somewhere, or nothing but one."""
    lowest, highest = _range(tensor)
    return lowest <= _SURELY_MASK or highest >= _NO_ACTIVATION or is_nothing_but_mask(tensor)


def is_nothing_but_mask(tensor: Tensor) -> bool:
    """Whether a tensor holds only 0 and one value below -20, or both 0 and one value above 9999."""
    lowest, highest = _range(tensor)
    if lowest > _MAYBE_MASK and not (lowest == 0 and highest >= -_SURELY_MASK):
        return False
    return _holds_but(tensor, lowest or highest)


def is_choice(tensor: Tensor) -> bool:
    """Whether a tensor holds 0 and at most one other number, of the size that masks have."""
    if not can_be_read(tensor):
        return False
    lowest, highest = _range(tensor)
    if lowest < 0 < highest or 0 < max(-lowest, highest) < -_MAYBE_MASK:
        return False
    return _holds_but(tensor, lowest or highest)


def _holds_but(tensor: Tensor, number: float) -> bool:
    """Whether there is nothing but 0 and one number in a tensor."""
    return bool(((tensor == 0) | (tensor == number)).all())


def mark_added(recording: Recording) -> None:
    """Take for a mask what is added to the scores of a softmax and made of an input of the model alone.

    What it holds says nothing: without padding, the mask of an example is all 0. Before a maximum that is one
    which all channels share: what has a number for each may be data. What is made of integers and booleans is
    one where it is a choice of two numbers.
    """
    for site in recording.sites:
        if site.op in _SOFTMAXES and site.data:
            _mark_before(recording, site.data[0].value, shared=False)
        elif site.op in _GREATEST and len(site.data) == 1:
            _mark_before(recording, site.data[0].value, shared=True)
    for site in recording.sites:
        if carries(site) and any(recording.values[operand.value].mask for operand in site.data):
            for index in site.outputs:
                recording.values[index].mask = True


def unmark_pooled(recording: Recording) -> None:
    """Take no mask for what a border of -inf makes before a max pooling: the pooling leaves nothing of it."""
    for site in recording.sites:
        given = any(recording.values[operand.value].mask for operand in site.data)
        readers = recording.readers(site)
        seen = recording.returned.intersection(site.outputs) or recording.values[site.outputs[0]].asked
        if site.op == "pad" and readers and not given and not seen and all(map(_pools, readers)):
            recording.values[site.outputs[0]].mask = False


def _pools(site: Site) -> bool:
    return site.op.startswith("max_pool")


def carries(site: Site) -> bool:
    """Whether the result of a site still holds the mask of an operand."""
    return site.kind is OpKind.MOVE or site.op in CARRIERS


def _mark_before(recording: Recording, value: int, *, shared: bool) -> None:
    """Go back from a softmax over sums and moves; mark what lies between it and what is handed in."""
    passed: list[int] = []
    while (site := recording.producer(value)) is not None and (site.op in SUMS or site.kind is OpKind.MOVE):
        passed.append(value)
        handed = [_handed_in(recording, operand.value, site, shared=shared) for operand in site.data]
        scores = [o.value for o, path in zip(site.data, handed, strict=True) if not path]
        scores = [score for score in scores if recording.values[score].live]
        if not scores:
            return
        for index in (*chain(*handed), *passed) if any(handed) or site.adds_choice else ():
            recording.values[index].mask = True
        value = scores[0]


def _handed_in(recording: Recording, value: int, site: Site, *, shared: bool) -> list[int]:
    """The values from an operand of ``site`` back to the input that it alone is made of."""
    fills = recording.values[value].shape == recording.values[site.outputs[0]].shape
    return [] if shared and fills else _back_to_input(recording, value)


def _back_to_input(recording: Recording, value: int) -> list[int]:
    """The values from one back to the input that it alone is made of; none where there is another source.

    An input that anything else computes with is no mask.
    """
    path = [value]
    while (site := recording.producer(path[-1])) is not None:
        live = recording.live(site)
        if len(live) != 1 or not _keeps_mask(site):
            return []
        path.extend(live)
    source = recording.values[path[-1]]
    readers = (recording.sites[index] for index in source.consumers)
    return path if source.kind == "input" and all(map(_keeps_mask, readers)) else []


def _keeps_mask(site: Site) -> bool:
    return carries(site) or site.op == "log"


def writes_mask(op: str, args: Any, kwargs: Any, results: Sequence[Value]) -> bool:
    """Whether a scalar of the size of a mask ends up in the result, even if nothing is masked this time.

    What is neither ``live`` nor ``fixed`` was made from integers and booleans: its logarithm, and its product
    with a number of the size of a mask (which may be subtracted later), are masks. What is ``live`` and not
    ``learned`` was made of the inputs: its product is, with a number that turns nothing into other units.
    """
    live = any(value.live for value in results)
    made = not live and not all(value.fixed for value in results)
    if op == "log":
        return made
    if op in _WRITERS:
        # An activation is filled with -100 before a softmax only. Whole numbers may be sizes and indices.
        lowest = _MAYBE_MASK if op == "masked_fill" else _SURELY_MASK
        return any(
            number <= lowest or (number >= -_SURELY_MASK and isinstance(number, float))
            for number in _numbers(args, kwargs)
        )
    if live:
        product = op == "mul" and not any(value.learned for value in results)
        return product and any(not _SURELY_MASK < number < _NO_UNIT for number in _numbers(args, kwargs))
    if op not in ("mul", "add"):
        return False
    lowest = _MAYBE_MASK if made else _SURELY_MASK
    return any(number <= lowest or number >= -_SURELY_MASK for number in _numbers(args, kwargs))


def _numbers(args: Any, kwargs: Any) -> list[float]:
    leaves = pytree.tree_leaves((args, kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, float | int) and not isinstance(leaf, bool)]


def before_replacement(recording: Recording) -> dict[int, str]:
    """The softmaxes of masked scores whose NaN, of rows where all is masked, is replaced: why float."""
    found = {}
    for site in recording.sites:
        if site.op == "softmax" and any(recording.values[operand.value].mask for operand in site.data):
            reader = recording.sole_consumer(site.outputs[0])
            if reader is not None and reader.op in _REPLACING:
                found[site.index] = f"is NaN where all is masked, before {reader.name}: quantized behind that"
    return found


def is_wrapped(tensor: Tensor) -> bool:
    """Whether ``torch.func.vmap`` or ``grad`` is at work on a tensor: its elements cannot be looked at."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_transformed(args: Any, kwargs: Any) -> bool:
    """Whether a transform of ``torch.func`` is at work on floats among the arguments."""
    return torch._C._are_functorch_transforms_active() and any(
        isinstance(leaf, Tensor) and leaf.is_floating_point() and is_wrapped(leaf)
        for leaf in pytree.tree_leaves((args, kwargs))
    )


def can_be_read(tensor: Tensor) -> bool:
    """Whether the elements of a tensor can be looked at, and there are some."""
    dense = tensor.layout is torch.strided and not tensor.is_complex()
    return dense and tensor.numel() > 0 and not tensor.is_meta and not is_wrapped(tensor)


def _range(tensor: Tensor) -> tuple[float, float]:
    if not can_be_read(tensor):
        return 0.0, 0.0
    lowest, highest = torch.aminmax(tensor.detach())
    return float(lowest), float(highest)
