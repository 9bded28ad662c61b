"""The optimizer and scheduler that a config names, built for a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from quantcfg.config.training import (
    Cosine,
    Linear,
    MultiStep,
    OneCycle,
    OptimizerSection,
    Scheduler,
    Step,
)
from quantcfg.errors import UserCodeError
from quantcfg.preparation.state import fake_quants

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "RMSprop": torch.optim.RMSprop,
}
_QUANTIZER_OPTIONS = ("quantizer_lr", "quantizer_weight_decay")


@dataclass(slots=True)
class LearningRate:
    """A scheduler and how often it steps. Without one the learning rate stays."""

    scheduler: LRScheduler | None = None
    is_per_epoch: bool = False

    def after_step(self) -> None:
        """Move the learning rate after an optimizer step."""
        if self.scheduler is not None and not self.is_per_epoch:
            self.scheduler.step()

    def after_epoch(self) -> None:
        """Move the learning rate after an epoch."""
        if self.scheduler is not None and self.is_per_epoch:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs; plain values."""
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if self.scheduler is not None:
            self.scheduler.load_state_dict(dict(state))


def build_optimizer(section: OptimizerSection, model: nn.Module) -> Optimizer:
    """The optimizer of the config, over everything in ``model`` that takes a gradient.

    Parameters of quantizers are a group of their own where their options are. They get no weight decay unless
    the config says so: it would pull scales towards zero, not towards simplicity.
    """
    options = section.model_dump(exclude={"name", *_QUANTIZER_OPTIONS})
    learned = {id(p) for module in fake_quants(model).values() for p in module.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = [p for p in trained if id(p) not in learned]
    scales = [p for p in trained if id(p) in learned]
    own = _quantizer_options(section, options)
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": scales} | own]
    if not scales or own.items() <= options.items():
        groups = [{"params": weights + scales}]  # two groups would take a step much longer than one
    return OPTIMIZERS[section.name](groups, **options)


def _quantizer_options(section: OptimizerSection, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"lr": section.quantizer_lr or options["lr"], "weight_decay": section.quantizer_weight_decay}


def _cosine(optimizer: Optimizer, section: Cosine, num_steps: int) -> LRScheduler:
    return lr_scheduler.CosineAnnealingLR(optimizer, num_steps, eta_min=section.min_lr)


def _linear(optimizer: Optimizer, section: Linear, num_steps: int) -> LRScheduler:
    ends = section.start_factor, section.end_factor
    return lr_scheduler.LinearLR(optimizer, *ends, total_iters=num_steps)


def _one_cycle(optimizer: Optimizer, section: OneCycle, num_steps: int) -> LRScheduler:
    peaks = _peaks(optimizer, section.max_lr)
    return lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=num_steps, pct_start=section.pct_start)


def _peaks(optimizer: Optimizer, max_lr: float) -> list[float]:
    """The highest rate of each group, in the proportion of their learning rates to the first group's."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return [max_lr * rate / rates[0] if rates[0] else max_lr for rate in rates]


def _step(optimizer: Optimizer, section: Step) -> LRScheduler:
    return lr_scheduler.StepLR(optimizer, section.step_size, gamma=section.gamma)


def _multi_step(optimizer: Optimizer, section: MultiStep) -> LRScheduler:
    return lr_scheduler.MultiStepLR(optimizer, list(section.milestones), gamma=section.gamma)


PER_STEP: dict[str, Callable[[Optimizer, Any, int], LRScheduler]] = {
    "cosine": _cosine,
    "linear": _linear,
    "onecycle": _one_cycle,
}
PER_EPOCH: dict[str, Callable[[Optimizer, Any], LRScheduler]] = {"step": _step, "multistep": _multi_step}


def build_learning_rate(
    section: Scheduler | None, optimizer: Optimizer, num_steps: int | None
) -> LearningRate:
    """The scheduler of the config over ``num_steps`` steps.

    Raises:
        UserCodeError: it needs to know how long training is, and the data has no length.
    """
    if section is None:
        return LearningRate()
    if section.name in PER_EPOCH:
        return LearningRate(PER_EPOCH[section.name](optimizer, section), is_per_epoch=True)
    if num_steps is None:
        raise UserCodeError(
            f"train_data() has no length, which the scheduler '{section.name}' needs",
            hint="set qat.steps in the config instead of qat.epochs",
        )
    return LearningRate(PER_STEP[section.name](optimizer, section, num_steps))
