"""Loss scaling for float16, whose gradients would vanish without it and overflow with too much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from quantcfg.errors import UsageError

MOST_IN_A_ROW = 30  # 2**16 halved as often: a gradient that still overflows does so whatever the scale


@dataclass(slots=True)
class LossScaler:
    """A `torch.amp.GradScaler` that does nothing unless it ``is_enabled``, and how many steps it skipped."""

    scaler: torch.amp.GradScaler
    is_enabled: bool
    num_skipped: int = 0
    in_a_row: int = 0

    @classmethod
    def of(cls, device: torch.device, autocast: str | None, model: nn.Module) -> LossScaler:
        """The scaler for a dtype of ``qat.autocast``.

        Raises:
            UsageError: Parameters are in float16 themselves: what is scaled away cannot be brought back.
        """
        halves = [name for name, p in model.named_parameters() if p.dtype == torch.float16]
        if autocast == "float16" and halves:
            raise UsageError(
                f"qat.autocast: float16 is for parameters in float32, and '{halves[0]}' is in float16",
                hint="build the model in float32; autocast casts what is to be cast",
            )
        is_enabled = autocast == "float16"
        return cls(torch.amp.GradScaler(device.type, enabled=is_enabled), is_enabled)

    @property
    def is_exhausted(self) -> bool:
        """Whether so many steps in a row were skipped that no scale will help."""
        return self.in_a_row >= MOST_IN_A_ROW

    @property
    def values(self) -> dict[str, float]:
        """The scale by its name in ``metrics.jsonl``; nothing where there is none."""
        return {"loss_scale": self.scaler.get_scale()} if self.is_enabled else {}

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to go backward from."""
        return self.scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring the gradients back to what the loss asks for."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """Make a step of gradients that are finite."""
        if not self.is_enabled:
            optimizer.step()
            return
        self.scaler.step(optimizer)
        self.scaler.update()
        self.in_a_row = 0

    def skip(self) -> None:
        """Leave out a step whose gradients are not, and scale the next losses less."""
        self.scaler.update()
        self.num_skipped += 1
        self.in_a_row += 1

    def state(self) -> dict[str, Any]:
        """What `load` needs; plain values."""
        return {
            "scaler": self.scaler.state_dict(),
            "num_skipped": self.num_skipped,
            "in_a_row": self.in_a_row,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        if self.is_enabled:
            self.scaler.load_state_dict(dict(state["scaler"]))
        self.num_skipped, self.in_a_row = state["num_skipped"], state["in_a_row"]
