"""Metrics of a model on ``eval_data``: the user's ``evaluate``, or accuracy, or the mean loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quantcfg.errors import RunError, UserCodeError
from quantcfg.stages.agreement import own_buffers
from quantcfg.stages.batches import IGNORED, class_scores, loss_in, num_samples, targets_of
from quantcfg.stages.data import DataSource, Numbered
from quantcfg.stages.model_file import ModelFile
from quantcfg.stages.progress import Progress, Task
from quantcfg.stages.ranks import ALONE, Ranks
from quantcfg.stages.seeding import isolated_randomness
from quantcfg.stages.sharded import is_sharded, reshard
from quantcfg.stages.sharding import Pulse
from quantcfg.stages.signals import Stopped, StopRequest
from quantcfg.stages.user_code import in_batch, place_of, user_code


class _Counts(NamedTuple):
    """What one batch adds, or all: samples that are right of those with a class, or the summed loss."""

    correct: float = 0.0
    counted: float = 0.0
    loss: float = 0.0
    samples: float = 0.0


def evaluate(
    model: nn.Module, data: DataSource, progress: Progress, title: str, stop: StopRequest | None = None
) -> dict[str, float]:
    """Metrics of ``model`` by name; empty when the model file has no data to evaluate on.

    The model is in eval mode meanwhile, gradients are off, and no random generator is advanced. With several
    ranks each runs the user's ``evaluate`` on all the data, and the first one's metrics count.

    Raises:
        Stopped: there is a ``stop`` between two batches, on any rank. The model is as it was before.
        UserCodeError: model, data or the user's ``evaluate`` raised or returned something else than metrics.
    """
    if not data.exists:
        return {}
    rounds = _Rounds(data, stop or StopRequest())
    with (
        _evaluating(model),
        isolated_randomness(),
        torch.no_grad(),
        progress.task(title, data.num_batches()) as task,
    ):
        if data.model_file.has("evaluate"):
            metrics = _users_metrics(model, rounds, task)
            return data.ranks.from_first(lambda: metrics)
        return _default_metrics(model, rounds, task)


def require_finite(metrics: Mapping[str, float], model: str, ranks: Ranks) -> None:
    """Refuse a NaN or infinity where it would be a result; on the way there it is only never the best.

    Raises:
        RunError: there is one; on all ranks.
    """
    hint = "look for NaN or inf in weights, outputs and data; leave out a metric without bounds"
    for name, value in metrics.items():
        if not isfinite(value):
            with ranks.alike():
                raise RunError(f"'{name}' of the {model} model is {value}", hint=hint)


@dataclass(slots=True)
class _Rounds:
    """An evaluation in rounds, between which all ranks compare what they have read, and may stop."""

    data: DataSource
    stop: StopRequest
    num_batches: int = 0
    is_broken_off: bool = False

    def batches(self) -> Iterator[Numbered]:
        """All batches, counted as they are read."""
        for index, batch in self.data.batches():
            self.num_batches = index + 1
            yield index, batch

    def next(self) -> None:
        """Begin another round.

        Raises:
            Stopped: some rank received a stop.
        """
        if self._meet().stop:
            self.is_broken_off = True
            raise Stopped

    def finish(self) -> None:
        """End the last round: from here on the evaluation is whole."""
        self._meet(is_end=True)

    def _meet(self, *, is_end: bool = False) -> Pulse:
        pulse = Pulse(self.num_batches, is_end, self.data.digest, stop=self.stop.received or 0)
        wishes = pulse.beat(self.data.ranks, self.data.name)
        self.stop.receive(wishes.stop)
        return wishes


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode for the block. What a broken off one has changed in it is taken back."""
    was_training = {module: module.training for module in model.modules()}
    before = {name: buffer.clone() for name, buffer in own_buffers(model).items()}
    model.eval()
    try:
        yield
    except Stopped:
        for name, buffer in own_buffers(model).items():
            buffer.copy_(before[name])
        raise
    finally:
        reshard(model)
        for module, training in was_training.items():
            module.training = training


def _users_metrics(model: nn.Module, rounds: _Rounds, task: Task) -> dict[str, float]:
    function = rounds.data.model_file.function("evaluate")
    try:
        with user_code("evaluate()", function):
            metrics = function(model, _watched(rounds, task))
    finally:
        if rounds.is_broken_off:  # whatever the function made of it: it saw a part of the data
            raise Stopped
    rounds.finish()
    if not isinstance(metrics, Mapping) or not metrics:
        kind = (
            "an empty dict" if isinstance(metrics, Mapping) else f"a value of type {type(metrics).__name__}"
        )
        raise UserCodeError(f"evaluate() returned {kind}, not a dict of metrics", where=place_of(function))
    return {str(name): _number(name, value, place_of(function)) for name, value in metrics.items()}


def _watched(rounds: _Rounds, task: Task) -> Iterator[Any]:
    for _, batch in rounds.batches():
        yield batch
        task.advance()
        rounds.next()


def _number(name: object, value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        kind = type(value).__name__
        raise UserCodeError(f"evaluate() gave '{name}' as {kind}, not as a number", where=where) from None


def _default_metrics(model: nn.Module, rounds: _Rounds, task: Task) -> dict[str, float]:
    """Accuracy or mean loss; each rank evaluates its share, and all add up what all found, in one order.

    Of a sharded model every rank evaluates everything: its parts need each other in every forward.
    """
    data = rounds.data
    ranks = ALONE if any(is_sharded(parameter) for parameter in model.parameters()) else data.ranks
    found: dict[int, _Counts] = {}
    total = _Counts()
    for index, batch in rounds.batches():
        if ranks.owns(index):
            found[index] = _counts_of(model, data, index, batch)
            total = _sum([total, found[index]])
        task.advance(**({} if data.ranks.are_many else _metrics(total)))
        if ranks.ends_round(index):
            rounds.next()
    rounds.finish()
    return _metrics(_sum(_of_all_ranks(found, ranks)))


def _counts_of(model: nn.Module, data: DataSource, index: int, batch: Any) -> _Counts:
    with in_batch(data.name, index), data.drawing(index):
        outputs = data.model_file.forward(model, batch)
        return _count(outputs, batch, data.model_file)


def _of_all_ranks(found: Mapping[int, _Counts], ranks: Ranks) -> list[_Counts]:
    """The counts of every batch, in the order of the batches."""
    rows = torch.tensor([[index, *counts] for index, counts in found.items()], dtype=torch.float64)
    parts = ranks.gather_bytes(rows.numpy().tobytes())
    everything = [torch.frombuffer(bytearray(part), dtype=torch.float64) for part in parts if part]
    table = torch.cat(everything).view(-1, 1 + len(_Counts._fields)).tolist() if everything else []
    return [_Counts(*row[1:]) for row in sorted(table)]


def _sum(counts: Iterable[_Counts]) -> _Counts:
    return _Counts(*(sum(column) for column in zip(*counts, strict=True)))


def _count(outputs: Any, batch: Any, model_file: ModelFile) -> _Counts:
    scores = class_scores(outputs, targets_of(batch))
    if scores is not None:
        return _count_correct(*scores)
    if model_file.has("loss") or loss_in(outputs) is not None:
        samples = num_samples(batch)
        return _Counts(loss=float(model_file.loss(outputs, batch)) * samples, samples=samples)
    raise model_file.undecided("evaluate", outputs, "accuracy the obvious metric")


def _count_correct(scores: Tensor, classes: Tensor) -> _Counts:
    counted = classes != IGNORED
    return _Counts(int(((scores.argmax(-1) == classes) & counted).sum()), int(counted.sum()))


def _metrics(counts: _Counts) -> dict[str, float]:
    if counts.counted:
        return {"accuracy": counts.correct / counts.counted}
    return {"loss": counts.loss / counts.samples} if counts.samples else {}
