"""Let torchvision import, and its detectors run, beside a torch that its wheel was not built for."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


@cache
def declare_operators() -> None:
    """Stand in for torchvision's compiled operators where they do not load.

    It refuses to import unless two of them have a name, and its detectors call one. All else has a form in
    Python already. Call this before torchvision, timm or transformers are imported.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
    except (OSError, ImportError):
        for name in ("nms", "qnms"):
            _LIBRARY.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARY.impl("nms", _nms, "CPU")
        from torchvision.ops import boxes

        boxes._assert_has_ops = lambda: None
        pooling = sys.modules["torchvision.ops.roi_align"]
        pooling._roi_align = pooling._roi_align.__wrapped__  # without the compiler, which takes minutes


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The boxes, best first, that overlap no better one by more than the threshold."""
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True)
    overlaps = box_iou(boxes[order], boxes[order]) > iou_threshold
    kept = torch.ones(len(order), dtype=torch.bool)
    for index in range(len(order)):
        if kept[index]:
            kept[index + 1 :] &= ~overlaps[index, index + 1 :]
    return order[kept]
