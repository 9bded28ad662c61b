"""A run as plain tensors and one table: integers, scales, zero points, and what each op does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from quantcfg.export.files import sync
from quantcfg.export.freeze import Frozen, FrozenModel, FrozenWeight
from quantcfg.preparation.hosts import FakeQuants
from quantcfg.preparation.plan import Plan

TABLE_VERSION = 1
_FORMULA = "(clamp(round_half_even(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale"


def write_safetensors(frozen: FrozenModel, metadata: Mapping[str, str], path: Path) -> None:
    """Integer weights, scales, zero points and the parameters and buffers left in float, as one file.

    Tensors are named ``<quantizer>.integers``, ``.scale`` and ``.zero_point``, as in the table; what stays in
    float has its name in the model's state dict. 4 bits lie in one byte each.
    """
    tensors = {
        f"{name}.{field}": tensor
        for name, module in frozen.quantizers.items()
        for field, tensor in _own_tensors(module).items()
    }
    tensors.update(_float_tensors(frozen.model))
    safetensors.torch.save_file(_apart(tensors), path, dict(metadata))
    sync(path)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their own memory each: the format has no two names for one."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        memory = stored.untyped_storage()
        whole = memory.nbytes() == stored.numel() * stored.element_size()
        apart[name] = stored if whole and memory.data_ptr() not in seen else stored.clone()
        seen.add(memory.data_ptr())
    return apart


def to_table(frozen: FrozenModel, plan: Plan, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Every quantizer and every op of the plan, as plain data for JSON."""
    return {
        "format_version": TABLE_VERSION,
        "formula": _FORMULA,
        "metadata": dict(metadata),
        "quantizers": [_row(module) for module in frozen.quantizers.values()],
        "ops": plan.to_dict()["ops"],
    }


def _own_tensors(module: Frozen) -> dict[str, Tensor]:
    tensors = {"scale": module.scale, "zero_point": module.zero_point}
    if isinstance(module, FrozenWeight):
        tensors["integers"] = module.integers
    return tensors


def _float_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What stays in float; a parameter whose integers are in the file is one repeated number by now."""
    ours = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, FakeQuants))
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(ours) and not _is_placeholder(tensor)
    }


def _is_placeholder(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and tensor.untyped_storage().nbytes() == tensor.element_size()


def _row(module: Frozen) -> dict[str, Any]:
    is_weight = isinstance(module, FrozenWeight)
    return {
        "name": module.name,
        "kind": "weight" if is_weight else "activation",
        "dtype": module.dtype_name,
        "stored_as": str(module.zero_point.dtype).removeprefix("torch."),
        "qscheme": module.qscheme,
        "ch_axis": module.axis,
        "quant_min": module.grid[0],
        "quant_max": module.grid[1],
        "shape": list(module.integers.shape) if isinstance(module, FrozenWeight) else None,
        "scale": _numbers(module.scale),
        "zero_point": _numbers(module.zero_point),
    }


def _numbers(tensor: Tensor) -> Any:
    return tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64).tolist()
