"""What a model is called with: the arguments of a batch, flat, and which of their axes may vary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from quantcfg.errors import RunError
from quantcfg.export.deployed import wide_arguments
from quantcfg.stages.batches import first_tensor
from quantcfg.stages.job import Job

_LOOKED_AT = 16  # batches whose shapes are compared to see which axes vary
_SOURCES = ("eval_data", "calib_data", "train_data")

Axes = frozenset[tuple[int, int]]
"""Axes that may vary: (number of the tensor among the arguments, axis)."""


class _Called(BaseException):
    """Ends a forward at its door."""


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one forward."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def leaves(self) -> list[Any]:
        """Everything in the arguments, flat."""
        return pytree.tree_leaves((self.args, dict(self.kwargs)))

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors in the arguments, in the order of `leaves`."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def in_float32(self) -> Call:
        """These arguments with float32 in the place of bfloat16."""
        args, kwargs = wide_arguments((self.args, dict(self.kwargs)))
        return Call(args, kwargs)

    def like(self, example: Call) -> Call:
        """These arguments with keywords in the order of ``example``.

        Raises:
            RunError: they are other arguments than those of ``example``.
        """
        known = [name for name in example.kwargs if name in self.kwargs]
        ordered = Call(self.args, {name: self.kwargs[name] for name in known})
        same = len(known) == len(self.kwargs) and _structure(ordered) == _structure(example)
        if not same:
            raise RunError("the model is called with other arguments than in the batch it was exported with")
        return ordered


def _structure(call: Call) -> Any:
    constants = [None if isinstance(leaf, Tensor) else repr(leaf) for leaf in call.leaves]
    return pytree.tree_structure((call.args, dict(call.kwargs))), constants


def capture(job: Job, model: nn.Module, batch: Any) -> Call:
    """The arguments that the forward of a batch gives to ``model``, which does not run."""
    found: list[Call] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        found.append(Call(args, dict(kwargs)))
        raise _Called

    hook = model.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        job.model_file.forward(model, batch)
    except _Called:
        pass
    finally:
        hook.remove()
    if not found:
        raise RunError(
            "forward() of the model file does not call the model itself, which is what is exported"
        )
    return found[0]


def source_name(job: Job) -> str:
    """The data function whose batches show how the model is called.

    Raises:
        UserCodeError: the model file has none.
    """
    return next((name for name in _SOURCES if job.model_file.has(name)), _SOURCES[0])


def example_calls(job: Job, model: nn.Module) -> list[tuple[Any, Call]]:
    """The first batches there are, each with its call."""
    batches = job.required_source(source_name(job)).batches(limit=_LOOKED_AT)
    return [(batch, capture(job, model, batch)) for _, batch in batches]


def varying_axes(calls: Sequence[Call]) -> Axes:
    """The axes that may vary: those that do among ``calls``, that of the samples, and that of tokens.

    The samples are axis 0 of all tensors that are as long there as the first one. Tokens are axis 1 of
    integers or masks of two axes.
    """
    example = calls[0].tensors
    found = {(i, a) for i, x in enumerate(example) for a in range(x.dim()) if _varies(calls, i, a)}
    first = first_tensor(calls[0].leaves)
    for index, tensor in enumerate(example):
        if first is not None and first.dim() and tensor.dim() and tensor.shape[0] == first.shape[0]:
            found.add((index, 0))
        if tensor.dim() == 2 and not tensor.is_floating_point():
            found.add((index, 1))
    return frozenset(found)


def _varies(calls: Iterable[Call], index: int, axis: int) -> bool:
    shapes = [call.tensors[index].shape for call in calls if index < len(call.tensors)]
    return len({shape[axis] for shape in shapes if axis < len(shape)}) > 1


def dynamic_shapes(call: Call, axes: Axes) -> Any:
    """``axes`` as torch.export takes them, in the structure of the arguments."""
    numbers = iter(range(len(call.tensors)))

    def spec(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        index = next(numbers)
        return {axis: Dim.AUTO if (index, axis) in axes else Dim.STATIC for axis in range(leaf.dim())}

    args, kwargs = pytree.tree_map(spec, (call.args, dict(call.kwargs)))
    return args, kwargs


def widened(call: Call, axes: Axes) -> Call:
    """``call`` with two samples where it has one: an axis of length 1 would be exported as always 1."""
    tensors = call.tensors
    if not any((index, 0) in axes and tensor.shape[0] == 1 for index, tensor in enumerate(tensors)):
        return call
    numbers = iter(range(len(tensors)))

    def widen(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return torch.cat([leaf, leaf]) if (next(numbers), 0) in axes else leaf

    args, kwargs = pytree.tree_map(widen, (call.args, dict(call.kwargs)))
    return Call(args, kwargs)
