"""Distillation: the float model's outputs as targets of the quantized one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantcfg.config.training import Distill
from quantcfg.errors import UserCodeError
from quantcfg.stages.batches import IGNORED, class_scores, targets_of
from quantcfg.stages.model_file import ModelFile


@dataclass(frozen=True, slots=True)
class Teacher:
    """The float model in eval mode, and how much is learned from it."""

    model: nn.Module
    model_file: ModelFile
    section: Distill

    def blend(self, loss: Tensor, outputs: Any, batch: Any) -> Tensor:
        """The loss of the targets and that of the teacher's class scores, by weight.

            (1 - weight) * loss + weight * temperature**2 * KL(teacher || student)

        The divergence is the mean over the samples, of the softmax of scores / temperature. Samples whose
        target is -100 are not counted.

        Raises:
            UserCodeError: outputs and targets do not make class scores the obvious reading.

        Reference:
            Hinton et al. 2015, arXiv 1503.02531, section 2.
        """
        with torch.no_grad():
            taught = self._scores(self.model_file.forward(self.model, batch), batch)
        divergence = self._divergence(self._scores(outputs, batch), taught)
        return (1 - self.section.weight) * loss + self.section.weight * divergence

    def _divergence(self, learned: Tensor, taught: Tensor) -> Tensor:
        temperature = self.section.temperature
        learned, taught = (F.log_softmax(scores / temperature, dim=-1) for scores in (learned, taught))
        return temperature**2 * F.kl_div(learned, taught, reduction="batchmean", log_target=True)

    def _scores(self, outputs: Any, batch: Any) -> Tensor:
        found = class_scores(outputs, targets_of(batch))
        if found is None:
            raise UserCodeError(
                "qat.distill needs class scores, and outputs and targets do not make them obvious",
                hint="return scores from forward() with integer targets in the batch, or remove qat.distill",
            )
        scores, classes = found
        return scores[classes != IGNORED].float()
