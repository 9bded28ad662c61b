"""Metrics of a model on ``eval_data``: the user's ``evaluate``, or accuracy, or the mean loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantcfg.errors import UserCodeError
from quantcfg.stages.batches import IGNORED, class_scores, loss_in, num_samples, targets_of
from quantcfg.stages.data import DataSource
from quantcfg.stages.model_file import FUNCTIONS, ModelFile
from quantcfg.stages.progress import Progress, Task
from quantcfg.stages.seeding import isolated_randomness
from quantcfg.stages.user_code import in_batch, place_of, user_code


@dataclass(slots=True)
class _Totals:
    correct: int = 0
    counted: int = 0
    loss: float = 0.0
    samples: int = 0


def evaluate(model: nn.Module, data: DataSource, progress: Progress, title: str) -> dict[str, float]:
    """Metrics of ``model`` by name; empty when the model file has no data to evaluate on.

    The model is in eval mode meanwhile, gradients are off, and no random generator is advanced.

    Raises:
        UserCodeError: Model, data or the user's ``evaluate`` raised or returned something else than metrics.
    """
    if not data.exists:
        return {}
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with isolated_randomness(), torch.no_grad(), progress.task(title, data.num_batches()) as task:
            if data.model_file.has("evaluate"):
                return _users_metrics(model, data, task)
            return _default_metrics(model, data, task)
    finally:
        for module, training in was_training.items():
            module.training = training


def _users_metrics(model: nn.Module, data: DataSource, task: Task) -> dict[str, float]:
    function = data.model_file.function("evaluate")
    with user_code("evaluate()", function):
        metrics = function(model, _watched(data, task))
    if not isinstance(metrics, Mapping) or not metrics:
        raise UserCodeError(
            f"evaluate() returned a value of type {type(metrics).__name__}, not a dict of metrics",
            where=place_of(function),
        )
    return {str(name): _number(name, value, place_of(function)) for name, value in metrics.items()}


def _watched(data: DataSource, task: Task) -> Iterator[Any]:
    for _, batch in data.batches():
        yield batch
        task.advance()


def _number(name: object, value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise UserCodeError(f"evaluate() gave '{name}' as {kind}, not as a number", where=where) from None


def _default_metrics(model: nn.Module, data: DataSource, task: Task) -> dict[str, float]:
    totals = _Totals()
    for index, batch in data.batches():
        with in_batch(data.name, index):
            outputs = data.model_file.forward(model, batch)
            _count(totals, outputs, batch, data.model_file)
        task.advance(**_metrics(totals))
    return _metrics(totals)


def _count(totals: _Totals, outputs: Any, batch: Any, model_file: ModelFile) -> None:
    scores = class_scores(outputs, targets_of(batch))
    if scores is not None:
        _count_correct(totals, *scores)
    elif model_file.has("loss") or loss_in(outputs) is not None:
        samples = num_samples(batch)
        totals.loss += float(model_file.loss(outputs, batch)) * samples
        totals.samples += samples
    else:
        raise UserCodeError(
            f"{model_file.shown} has no 'evaluate', and the targets do not make accuracy the obvious metric",
            hint=f"define '{FUNCTIONS['evaluate']}'",
        )


def _count_correct(totals: _Totals, scores: Tensor, classes: Tensor) -> None:
    counted = classes != IGNORED
    totals.correct += int(((scores.argmax(-1) == classes) & counted).sum())
    totals.counted += int(counted.sum())


def _metrics(totals: _Totals) -> dict[str, float]:
    if totals.counted:
        return {"accuracy": totals.correct / totals.counted}
    return {"loss": totals.loss / totals.samples} if totals.samples else {}
