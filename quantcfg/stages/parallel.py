"""What a step goes backward from: the loss of a batch, by one process, DDP or FSDP2."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from quantcfg.errors import UserCodeError
from quantcfg.stages.distillation import Teacher
from quantcfg.stages.job import Job
from quantcfg.stages.model_file import ModelFile
from quantcfg.stages.sharded import is_fsdp, is_sharded
from quantcfg.stages.user_code import place_of, user_code

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
Loss: TypeAlias = Callable[[Any], Tensor]  # of a batch


class Objective(nn.Module):
    """The model with its loss, one module whose output is a scalar: what DDP can wrap around any forward."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        """The loss of a batch."""
        return self.loss(batch)


@dataclass(frozen=True, slots=True)
class Worker:
    """Computes losses whose gradients all ranks share.

    Attributes:
        loss: the loss of a batch.
        share: what the gradients are divided by after they were brought together: the number of ranks, of
            which DDP and FSDP2 take the mean.
        ddp, fsdp: what brings them together, if anything does: DDP around the loss, or the sharded model.
    """

    loss: Loss
    share: int = 1
    ddp: DistributedDataParallel | None = None
    fsdp: Any = None

    def share_gradients(self, is_last: bool) -> None:
        """Before a batch: only after the last one of a step gradients are brought together."""
        if self.fsdp is not None:
            self.fsdp.set_requires_gradient_sync(is_last)
        if self.ddp is not None:
            self.ddp.require_backward_grad_sync = is_last


def make_worker(job: Job, model: nn.Module, teacher: Teacher | None) -> Worker:
    """The worker of this rank for a ``model`` that is sharded already, if it is to be."""
    loss = _loss_of(job, model, teacher)
    if not job.ranks.are_many:
        return Worker(loss)
    if is_fsdp(model):
        return Worker(loss, job.ranks.size, fsdp=model)
    # Observers and batch norms are kept equal by StepStatistics; a broadcast would undo what ranks have seen.
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of a name that older torch lacks
        objective = Objective(model, loss)
        wrapped = DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=True)
    return Worker(wrapped, job.ranks.size, ddp=wrapped)


def _loss_of(job: Job, model: nn.Module, teacher: Teacher | None) -> Loss:
    """The loss of a batch under the autocast of the config. What it is made of is looked up here, once."""
    forward, criterion = job.model_file.forward, job.model_file.loss
    autocast = AUTOCAST.get(job.config.qat.autocast or "")

    def loss(batch: Any) -> Tensor:
        outputs = forward(model, batch)
        result = criterion(outputs, batch)
        if teacher is not None:
            result = teacher.blend(result, outputs, batch)
        if not result.requires_grad:
            _refuse_constant(job.model_file)
        return result

    return loss if autocast is None else torch.autocast(job.device.type, autocast)(loss)


def _refuse_constant(model_file: ModelFile) -> NoReturn:
    raise UserCodeError(
        "the loss depends on nothing that can be trained",
        hint="requires_grad_(False), no_grad(), detach() and item() cut it off from the parameters",
        where=place_of(model_file.function("loss") if model_file.has("loss") else None),
    )


def shard(job: Job, model: nn.Module) -> None:
    """Shard ``model`` in place by the model file's ``shard(model, mesh)``, if it has one and ranks are many.

    Raises:
        UserCodeError: ``shard`` raised, or left nothing to shard.
    """
    if not (job.ranks.are_many and job.model_file.has("shard")):
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    function = job.model_file.function("shard")
    mesh = init_device_mesh(job.device.type, (job.ranks.size,))
    with user_code("shard()", function):
        function(model, mesh)
    if not is_fsdp(model):
        fully_shard(model, mesh=mesh)  # what no part of the model has taken
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        raise UserCodeError("shard() left no parameter to shard", where=place_of(function))
