"""What a run was made of, as hashes and versions: the facts that tell two runs apart."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

_PACKAGES = ("quantcfg", "torch", "numpy", "safetensors")


def hash_state(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bits of a state_dict, whatever the order of its keys."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        _update(digest, state[name])
    return digest.hexdigest()


def kinds_of(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Dtype and shape of each tensor of a state_dict, as ``float32 (8, 3)``."""
    return {name: f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for name, x in state.items()}


def hash_text(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def versions() -> dict[str, str]:
    """The versions that bits may depend on."""
    packages = {name: _version(name) for name in _PACKAGES}
    # What torch says of itself tells the build, 2.13.0+cu130 say, which its package leaves out.
    return {"python": platform.python_version()} | packages | {"torch": str(torch.__version__)}


def _update(digest: Any, tensor: Tensor) -> None:
    flat = tensor.detach().to("cpu").contiguous().flatten()
    digest.update(f"{flat.dtype}{tuple(tensor.shape)}".encode())
    digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
