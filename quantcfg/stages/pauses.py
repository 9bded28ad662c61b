"""What happens between two optimizer steps: evaluations, checkpoints, and the end by a signal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from quantcfg.preparation.state import FakeQuantState, check_observers, fake_quants, set_fake_quantize
from quantcfg.runs.directory import RunDirectory
from quantcfg.stages import records
from quantcfg.stages.clock import Clock, SaveTimer
from quantcfg.stages.evaluate import evaluate
from quantcfg.stages.identity import Identity
from quantcfg.stages.job import Job
from quantcfg.stages.seeding import restorer
from quantcfg.stages.selection import Selection
from quantcfg.stages.sharded import whole
from quantcfg.stages.sharding import Pulse
from quantcfg.stages.signals import Stopped, StopRequest
from quantcfg.stages.training import Trainer, TrainPosition, enter_phase


@dataclass(frozen=True, slots=True)
class Pauses:
    """The pauses of one training, in which all ranks do the same."""

    job: Job
    run: RunDirectory
    identity: Identity
    clock: Clock
    selection: Selection
    stop: StopRequest
    _timer: SaveTimer = field(default_factory=SaveTimer, init=False)

    def between_steps(self, trainer: Trainer) -> None:
        """Evaluate and save where it is time to.

        Raises:
            Interrupted: some rank received a signal; the checkpoint is saved.
        """
        evaluates = self._is_evaluated(trainer.position)
        if evaluates:
            self._evaluate(trainer)
            enter_phase(self.job, trainer.model, trainer.position.epoch)
        if trainer.is_stopped:  # the end of the epoch saves
            return
        if self._agreed(trainer, is_due=self._timer.is_due()) or evaluates or self.stop.received:
            self._save(trainer)
        if self.stop.received:
            self._interrupt(trainer)

    def after_epoch(self, trainer: Trainer) -> None:
        """Evaluate and save.

        Raises:
            Interrupted: some rank received a signal; the checkpoint is saved.
        """
        self._evaluate(trainer)
        self._save(trainer)
        self._agreed(trainer)
        if self.stop.received:  # at the end of training, too: the result may still have to be evaluated
            self._interrupt(trainer)

    def catch_up(self, trainer: Trainer) -> None:
        """Make the evaluation that a signal broke off, and go on from it as the run would have."""
        position = trainer.position
        if not self._is_evaluated(position) or self._has_evaluated(position):
            return
        restorer(trainer.random)()  # the checkpoint of this step is written again
        if position.batch:
            self.between_steps(trainer)
            if trainer.is_stopped:
                trainer.end_epoch()
        else:
            self.after_epoch(trainer)

    def _is_evaluated(self, position: TrainPosition) -> bool:
        """Whether what is trained is evaluated at this place: every so many steps, and after each epoch."""
        every = self.job.config.qat.eval_every
        is_wanted = every is not None and position.step % every == 0
        return position.step > 0 and (is_wanted or position.batch == 0)

    def _has_evaluated(self, position: TrainPosition) -> bool:
        return self.selection.step == position.step

    def _evaluate(self, trainer: Trainer) -> None:
        """Evaluate what would be kept, once after each step, and say whether training is to go on.

        A signal breaks it off, as if it had not begun.
        """
        position, model = trainer.position, trainer.model
        if self._has_evaluated(position):
            return
        trainer.require_agreement()
        set_fake_quantize(model, FakeQuantState.VALIDATION)
        data, title = self.job.source("eval_data"), f"evaluating after step {position.step}"
        try:
            with self.clock.phase("evaluation"), trainer.result():
                metrics = evaluate(model, data, self.job.progress, title, self.stop)
        except Stopped:
            return
        self.selection.add(metrics, position.step)
        trainer.shown = {f"eval_{name}": value for name, value in metrics.items()}
        epoch = position.epoch + (position.batch > 0)
        self.run.metrics.append(step=position.step, epoch=epoch, evaluation=metrics)
        if self.run.events is not None:
            self.run.events.append(position.step, _learned(model))
        trainer.is_stopped = self.selection.is_exhausted

    def _agreed(self, trainer: Trainer, *, is_due: bool = False) -> bool:
        """Let all ranks know of a stop, and whether the first one finds that a checkpoint is due."""
        ranks, step = self.job.ranks, trainer.position.step
        if not ranks.are_many:
            return is_due
        pulse = Pulse(step, stop=self.stop.received or 0, save=ranks.is_first and is_due)
        wishes = pulse.beat(ranks, trainer.source.name)
        self.stop.receive(wishes.stop)
        return wishes.save

    def _save(self, trainer: Trainer) -> None:
        with self.job.ranks.alike():
            check_observers(trainer.model)
        trainer.require_agreement()
        best, step = self.selection.best_step, trainer.position.step
        state: Mapping[str, Any] = trainer.state() | {"selection": self.selection.state()}
        spare, inside = () if best is None else (best,), trainer.result()
        records.save(self.run, trainer.model, step, self.identity, state, spare=spare, inside=inside)

    def _interrupt(self, trainer: Trainer) -> None:
        with self.job.ranks.alike():
            raise records.interrupted(self.job, self.stop, trainer.position.step)


def _learned(model: nn.Module) -> dict[str, float]:
    """What the quantizers learn, each parameter by its mean over the channels."""
    return {
        f"quantizers/{name}.{parameter}": float(whole(value.detach()).mean())
        for name, fake_quant in fake_quants(model).items()
        for parameter, value in fake_quant.named_parameters(recurse=False)
    }
