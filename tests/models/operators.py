"""Let torchvision import beside a torch that its wheel was not built for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def declare_operators() -> None:
    """Give torchvision's operators names where its compiled ones do not load.

    It says which shapes two of them make, which fails unless they exist. As names they suffice: a model that
    is no detector calls none of them. Call this before torchvision, timm or transformers are imported.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
    except (OSError, ImportError):
        for name in ("nms", "qnms"):
            _LIBRARY.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
