"""Whether a model is being exported, which needs its forward alone."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Whether ``torch.export`` is at work.

    The flag itself: in all that is compiled ``torch.compiler.is_exporting`` is True up to torch 2.10, and
    what is compiled for training would have no gradients.
    """
    return bool(torch.compiler._is_exporting_flag)
