"""Randomness: derived from the seed where it is ours, saved and restored where others own it."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

SEEDS = 64  # batches in a block of `batch_seeds`


def derive_seed(seed: int, *purpose: object) -> int:
    """A seed for one purpose, such as ``("train_data", epoch)``: the same in every process and version.

    It has 32 bits, which is what NumPy takes.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@lru_cache(maxsize=8)
def batch_seeds(seed: int, source: str, epoch: int, block: int) -> list[int]:
    """The seeds of the batches of one block of an epoch: `SEEDS` at once, as the first hash takes longest."""
    first = block * SEEDS
    return [derive_seed(seed, source, "batch", epoch, index) for index in range(first, first + SEEDS)]


def seed_all(seed: int) -> None:
    """Seed Python, NumPy (when something imported it) and torch on every device."""
    random.seed(seed)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


def random_state() -> dict[str, Any]:
    """The state of every global generator, as plain values and tensors."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, position, has_gauss, cached = numpy.random.get_state()
        words = torch.tensor(keys.astype("int64"))
        state["numpy"] = {
            "kind": kind,
            "keys": words,
            "at": int(position),
            "gauss": [int(has_gauss), float(cached)],
        }
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Bring every global generator to what `random_state` gave."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    torch.set_rng_state(_bytes(state["torch"]))
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all([_bytes(item) for item in state["cuda"]])
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in state:
        saved = state["numpy"]
        keys = saved["keys"].numpy().astype("uint32")
        numpy.random.set_state((saved["kind"], keys, saved["at"], *saved["gauss"]))


def restorer(state: Mapping[str, Any] | None) -> Callable[[], None]:
    """A function that restores ``state``, and does nothing when there is none."""
    return lambda: restore_random_state(state) if state is not None else None


class seeded(AbstractContextManager[None]):  # noqa: N801  as in contextlib; a class, for one is entered per batch
    """Let the block draw from torch's generators, started at ``seed``; outside nothing has been drawn.

    What a model draws for a batch (dropout) then depends on that batch alone, whichever process runs it.
    """

    __slots__ = ("_device", "_saved", "_seed")

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        self._saved = [torch.default_generator.get_state()]
        torch.default_generator.manual_seed(self._seed)
        if self._device is not None:
            self._saved.append(torch.cuda.get_rng_state(self._device))
            torch.cuda.manual_seed(self._seed)

    def __exit__(self, *raised: object) -> None:
        torch.default_generator.set_state(self._saved[0])
        if self._device is not None:
            torch.cuda.set_rng_state(self._saved[1], self._device)


@contextmanager
def isolated_randomness() -> Iterator[None]:
    """Let the block draw what it likes: outside, the generators go on as if it had not run."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


@contextmanager
def seeded_everywhere(seed: int) -> Iterator[None]:
    """Like `seeded`, for the generators of Python and NumPy as well."""
    with isolated_randomness():
        seed_all(seed)
        yield


def _bytes(state: Tensor) -> Tensor:
    return state.to("cpu", torch.uint8)
