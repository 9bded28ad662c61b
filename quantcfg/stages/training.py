"""The training loop of the qat stage, whose state can be saved between any two steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from quantcfg.config.schema import QatSection
from quantcfg.errors import RunError
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.preparation.freezing import freeze_batch_norm, freeze_observers
from quantcfg.preparation.hosts import FakeQuants
from quantcfg.preparation.state import FakeQuantState, fake_quants, set_fake_quantize
from quantcfg.runs.metrics import MetricsLog
from quantcfg.stages.agreement import require_agreement, share_buffers
from quantcfg.stages.averaging import WeightAverage
from quantcfg.stages.data import DataSource
from quantcfg.stages.gradients import Gradients
from quantcfg.stages.job import Job
from quantcfg.stages.optimizers import LearningRate
from quantcfg.stages.parallel import Worker
from quantcfg.stages.progress import Task
from quantcfg.stages.scaling import MOST_IN_A_ROW, LossScaler
from quantcfg.stages.seeding import random_state, restorer
from quantcfg.stages.sharded import load_optimizer, whole, whole_state
from quantcfg.stages.signals import StopRequest
from quantcfg.stages.steps import Turn, steps
from quantcfg.stages.synchronize import OneBatch, StepStatistics
from quantcfg.stages.user_code import in_batch

LOG_INTERVAL = 10  # steps between two lines of metrics.jsonl
_WEIGHT_SLOT = re.compile(r"(^|_)weight(_|$)")


@dataclass(frozen=True, slots=True)
class TrainPosition:
    """Where training is: ``batch`` batches into ``epoch``, both from 0, after ``step`` optimizer steps."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Length:
    """How long training is: in ``epochs`` or in ``steps``; the other one is None."""

    epochs: int | None
    steps: int | None

    def is_over(self, position: TrainPosition) -> bool:
        """Whether ``position`` is the end."""
        if self.steps is not None:
            return position.step >= self.steps
        assert self.epochs is not None
        return position.epoch >= self.epochs


class Pauses(Protocol):
    """What there is to do while the state of a training can be saved."""

    @property
    def stop(self) -> StopRequest:
        """Whether somebody asked for the end."""

    def between_steps(self, trainer: Trainer) -> None:
        """After each optimizer step but the last."""

    def after_epoch(self, trainer: Trainer) -> None:
        """After each epoch."""


@dataclass(slots=True)
class Trainer:
    """Model, optimizer and position, and how to move them on. ``worker`` computes the losses of ``model``.

    What the ``pauses`` do may raise. They may set ``is_stopped``, which ends the training early, and what is
    ``shown`` beside the loss while it goes on.
    """

    job: Job
    model: nn.Module
    worker: Worker
    optimizer: Optimizer
    learning_rate: LearningRate
    scaler: LossScaler
    source: DataSource
    length: Length
    log: MetricsLog
    pauses: Pauses
    position: TrainPosition = TrainPosition()
    random: Mapping[str, Any] | None = None
    average: WeightAverage | None = None
    is_stopped: bool = False
    has_odd_buffers: bool = False
    shown: Mapping[str, float] = field(default_factory=dict)
    section: QatSection = field(init=False)
    gradients: Gradients = field(init=False)
    quantizers: Sequence[FakeQuantizeBase] = field(init=False)

    def __post_init__(self) -> None:
        self.section = self.job.config.qat
        self.gradients = Gradients.of(self.optimizer)
        self.quantizers = list(fake_quants(self.model).values())

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to train."""
        return self.is_stopped or self.length.is_over(self.position)

    def run(self, task: Task) -> None:
        """Train to the end from wherever `position` is."""
        while not self.is_over:
            self._epoch(task)

    def state(self) -> dict[str, Any]:
        """Everything but the model's own state, as `load` takes it."""
        return {
            "position": asdict(self.position),
            "optimizer": whole_state(self.optimizer.state_dict()),
            "schedule": self.learning_rate.state_dict(),
            "scaler": self.scaler.state(),
            "random": random_state(),
            "weights": whole_state(self.average.weights()) if self.average is not None else None,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.position = TrainPosition(**state["position"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.learning_rate.load_state_dict(state["schedule"])
        self.scaler.load(state["scaler"])
        self.random = state["random"]
        if self.average is not None:
            self.average.load(state["weights"])

    @contextmanager
    def result(self) -> Iterator[None]:
        """Inside the block the model has the weights that are evaluated and kept, if those are others."""
        with self.average.applied() if self.average is not None else nullcontext():
            yield

    def _epoch(self, task: Task) -> None:
        enter_phase(self.job, self.model, self.position.epoch)
        restore = restorer(self.random if self.position.batch else None)
        size, ranks = self.section.accumulate, self.job.ranks
        statistics = StepStatistics(self.model, ranks) if ranks.are_many or size > 1 else OneBatch()
        batches = self.source.batches(
            self.position.epoch, skip=self.position.batch, after_skip=restore, stop=self.pauses.stop
        )
        for turns in steps(self.source, batches, size):
            num_batches = self._step(task, turns, statistics)
            if self.position.step == self.length.steps:
                break
            if num_batches == size:
                self.pauses.between_steps(self)
                if self.is_stopped:
                    break
        self.end_epoch()

    def end_epoch(self) -> None:
        """Move on to the next epoch, whatever is left of this one."""
        self.position = TrainPosition(self.position.epoch + 1, 0, self.position.step)
        self.learning_rate.after_epoch()
        self.pauses.after_epoch(self)

    def _step(self, task: Task, turns: Iterable[Turn], statistics: OneBatch | StepStatistics) -> int:
        """Make one optimizer step; how many batches it had."""
        self.gradients.clear()
        losses = statistics.losses(turns, self._backward)
        if not all(map(isfinite, losses)):
            with self.job.ranks.alike():
                self._refuse_loss(losses)
        self._update(task, losses)
        if self.position.step % self.section.check_ranks_every == 0:
            self.require_agreement()
        return len(losses)

    def require_agreement(self) -> None:
        """Compare what all ranks hold. Buffers that forward changes become those of the first rank.

        Raises:
            RunError: Qparams or weights differ.
        """
        require_agreement(self.model, self.job.ranks, f"after step {self.position.step}")
        names = share_buffers(self.model, self.job.ranks)
        if names and not self.has_odd_buffers:
            self.has_odd_buffers = True
            self.job.progress.note(
                f"forward changes buffers, which differ by rank: those of the first count: {', '.join(names)}"
            )

    def _backward(self, turn: Turn) -> float:
        if self.job.ranks.are_many:
            self.job.ranks.at(self._place(turn.index))
            self.worker.share_gradients(turn.is_last)
        if not torch.is_grad_enabled():  # the model file has left them off
            torch.set_grad_enabled(True)
        try:
            with self.source.drawing(turn.index, self.position.epoch):
                loss = self.worker.loss(turn.batch)
                scaled = self.scaler.scaled(loss) if self.scaler.is_enabled else loss
                (scaled if turn.counts else scaled * 0).backward()  # type: ignore[no-untyped-call]
        except BaseException:  # as in `DataSource`, entered only here
            with in_batch(self.source.name, turn.index):
                raise
        return loss.item()

    def _refuse_loss(self, losses: Sequence[float]) -> NoReturn:
        bad = list(map(isfinite, losses)).index(False)
        hint = "look at the data of that batch, or lower the learning rate"
        if self.scaler.is_enabled:
            hint += "; float16 ends at 65504: autocast: bfloat16 does not"
        where = self._place(self.position.batch + bad)
        raise RunError(f"the loss is {losses[bad]} in {where}; nothing was updated", hint=hint)

    def _update(self, task: Task, losses: list[float]) -> None:
        """Make one optimizer step of the gradients of the next batches, which had these ``losses``."""
        rate = self.optimizer.param_groups[0]["lr"]
        end = self.position.batch + len(losses)
        with self.job.ranks.alike():
            is_ready = self._check_and_clip(end - 1, len(losses) / self.worker.share)
        if is_ready:
            self.scaler.step(self.optimizer)
            self.learning_rate.after_step()
            if self.average is not None:
                self.average.update()
        else:
            self.scaler.skip()
        self.position = TrainPosition(self.position.epoch, end, self.position.step + 1)
        self._report(task, loss=sum(losses) / len(losses), lr=rate)

    def _place(self, index: int) -> str:
        return f"step {self.position.step + 1} (epoch {self.position.epoch + 1}, batch {index})"

    def _check_and_clip(self, index: int, divisor: float) -> bool:
        """Make the gradients ready for a step; False where it is to be skipped for a smaller loss scale."""
        if self.scaler.is_enabled:
            self.scaler.unscale(self.optimizer)
        gradients, limit = self.gradients, self.section.grad_clip
        if divisor != 1:
            gradients.divide(divisor)
        norm = gradients.norm() if limit is not None else None
        if not (gradients.are_finite() if norm is None else bool(norm.isfinite())):
            self._refuse_gradient(self._place(index))
            return False
        if limit is not None and norm is not None:
            gradients.clip(limit, norm)
        return True

    def _refuse_gradient(self, where: str) -> None:
        if self.scaler.is_enabled and not self.scaler.is_exhausted:
            return
        names = [f"of '{name}'" for name, p in self.model.named_parameters() if _is_bad(p.grad)]
        names.append("of all parameters, squared and added up,")
        steps = f"in {MOST_IN_A_ROW + 1} steps up to {where[5:]}" if self.scaler.is_enabled else f"in {where}"
        raise RunError(
            f"the gradient {names[0]} is not finite {steps}; nothing was updated",
            hint="a smaller learning rate, or qat.grad_clip, keeps training finite",
        )

    def _report(self, task: Task, **values: float) -> None:
        task.advance(**values, **self.shown)
        if self.position.step % LOG_INTERVAL == 0 or self.position.step == 1:
            with self.job.ranks.alike():
                for quantizer in self.quantizers:
                    quantizer.observer.check()
            values |= self.scaler.values
            self.log.append(step=self.position.step, epoch=self.position.epoch + 1, **values)


def enter_phase(job: Job, model: nn.Module, epoch: int) -> None:
    """Put ``model`` into the state that ``epoch`` trains in: a function of the config and the epoch alone."""
    freeze = job.config.qat.schedule
    set_fake_quantize(model, FakeQuantState.QAT)
    model.train()
    if freeze.freeze_observers_after is not None and epoch >= freeze.freeze_observers_after:
        freeze_observers(model)
    if freeze.freeze_bn_after is not None and epoch >= freeze.freeze_bn_after:
        freeze_batch_norm(model)
    if epoch < freeze.quantize_activations_after:
        _float_activations(model)


def _float_activations(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, FakeQuants):
            for slot, fake_quant in module.items():
                fake_quant.quantizing = bool(_WEIGHT_SLOT.search(slot))  # type: ignore[assignment]


def _is_bad(gradient: Tensor | None) -> bool:
    return gradient is not None and not bool(whole(gradient).isfinite().all())
