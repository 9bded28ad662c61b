"""Batches as users have them (tensors, pairs, dicts, dataclasses), and what a stage needs of them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100  # the target that torch's cross-entropy passes over by default
TARGET_KEYS = ("labels", "label", "targets", "target")
_OUTPUT_KEYS = ("logits", "out", "output")
_SEQUENCES = (tuple, list)
_NOT_NAMED = (Tensor, *_SEQUENCES)


def forward(model: nn.Module, batch: Any) -> Any:
    """Run ``model`` on the inputs of ``batch``.

    A tensor is the input itself. Of a tuple or list the last item is the target and the others are inputs (a
    single one is the input). A dict or dataclass is passed by name, without its targets unless the model's
    forward takes them by their name, as Hugging Face models do.
    """
    if (named := _as_mapping(batch)) is not None:
        return model(**_without_targets(named, model))
    inputs = batch[:-1] if isinstance(batch, _SEQUENCES) and len(batch) > 1 else batch
    while isinstance(inputs, _SEQUENCES) and len(inputs) == 1:
        inputs = inputs[0]
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, _SEQUENCES) else model(inputs)


def targets_of(batch: Any) -> Any:
    """The targets in ``batch``, or None when it has none."""
    if isinstance(batch, _SEQUENCES):
        return batch[-1] if len(batch) > 1 else None
    named = _as_mapping(batch)
    return None if named is None else next((named[key] for key in TARGET_KEYS if key in named), None)


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with every tensor in it on ``device``; the containers keep their kind."""
    return _map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def fault_in(batch: Any, tensors: Sequence[Tensor]) -> str:
    """What makes ``batch``, with its ``tensors``, nothing that a model can take; empty when nothing does."""
    if not tensors:
        return f"is of type {type(batch).__name__} and holds no tensor"
    is_meta = any(tensor.is_meta for tensor in tensors)
    return "holds a tensor on the meta device, which has no values" if is_meta else ""


def num_samples(batch: Any) -> int:
    """The size of the first axis of the first tensor of ``batch``."""
    tensor = first_tensor(batch)
    return tensor.shape[0] if tensor is not None and tensor.dim() else 1


def cut(batch: Any, samples: int) -> Any:
    """The first ``samples`` samples of ``batch``: every tensor with a row per sample is cut to them."""
    if (rows := num_samples(batch)) <= samples:
        return batch
    return _map_tensors(batch, lambda x: x[:samples] if x.dim() and x.shape[0] == rows else x)


def first_tensor(batch: Any) -> Tensor | None:
    """The first tensor in ``batch``, in the order of its items."""
    return next(iter(tensors_in(batch)), None)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested containers, in the order of their items."""
    if isinstance(value, Tensor):
        return [value]
    if not isinstance(value, _SEQUENCES):
        named = _as_mapping(value)
        value = () if named is None else named.values()
    found: list[Tensor] = []
    for item in value:
        found += [item] if isinstance(item, Tensor) else tensors_in(item)
    return found


def logits_of(outputs: Any) -> Tensor | None:
    """The tensor of class scores in what a model returned, or None when it is not obvious."""
    if isinstance(outputs, Tensor):
        return outputs
    named = _as_mapping(outputs)
    if named is not None:
        outputs = next((named[key] for key in _OUTPUT_KEYS if key in named), None)
    elif isinstance(outputs, _SEQUENCES) and outputs:
        outputs = outputs[0]
    return outputs if isinstance(outputs, Tensor) else None


def loss_in(outputs: Any) -> Tensor | None:
    """The loss that the model computed itself (Hugging Face style), or None."""
    named = _as_mapping(outputs)
    loss = named.get("loss") if named is not None else None
    return loss if isinstance(loss, Tensor) else None


def class_scores(outputs: Any, targets: Any) -> tuple[Tensor, Tensor] | None:
    """Scores ``(N, C)`` and class numbers ``(N,)`` when cross-entropy is the obvious reading, else None.

    Shapes:
        logits ``(..., C)`` with integer targets ``(...)``, or ``(N, C, d1, ...)`` with ``(N, d1, ...)``.
    """
    logits = logits_of(outputs)
    if logits is None or not isinstance(targets, Tensor) or not logits.is_floating_point():
        return None
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        return None
    if logits.dim() > 3 and logits.shape[:1] + logits.shape[2:] == targets.shape:
        return logits.movedim(1, -1).flatten(0, -2), targets.flatten()
    if logits.dim() > 1 and logits.shape[:-1] == targets.shape:
        return logits.flatten(0, -2), targets.flatten()
    if logits.dim() == 3 and logits.shape[:1] + logits.shape[2:] == targets.shape:
        return logits.movedim(1, -1).flatten(0, -2), targets.flatten()
    return None


def default_loss(outputs: Any, batch: Any) -> Tensor | None:
    """The model's own loss, or cross-entropy where the targets make that obvious, else None."""
    if not isinstance(outputs, Tensor) and (own := loss_in(outputs)) is not None:
        return own
    scores = class_scores(outputs, targets_of(batch))
    return F.cross_entropy(scores[0].float(), scores[1].long()) if scores else None


def _as_mapping(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, _NOT_NAMED):  # most are, and the questions below take longer
        return None
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _without_targets(named: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    wanted = inspect.signature(model.forward).parameters
    return {key: value for key, value in named.items() if key not in TARGET_KEYS or key in wanted}


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a NamedTuple takes its fields one by one
        return type(value)(*(_map_tensors(item, function) for item in value))
    if isinstance(value, _SEQUENCES):
        return type(value)(_map_tensors(item, function) for item in value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{n: _map_tensors(getattr(value, n), function) for n in names})
    return value
