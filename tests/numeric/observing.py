"""Observers for tests, of every kind and scheme, over tensors that have three channels on axis 1."""

from __future__ import annotations

import torch

from quantcfg.numeric.observers import OBSERVERS

SCHEMES = {
    "per_tensor_symmetric": {},
    "per_tensor_affine": {},
    "per_channel_symmetric": {"ch_axis": 1, "num_channels": 3},
    "per_channel_affine": {"ch_axis": 1, "num_channels": 3},
}
OBSERVING = [kind for kind in OBSERVERS if kind != "fixed_scale"]
"""The kinds that look at their data."""

SOLVED = ["percentile", "mse", "kl", "mix"]
"""The histogram family."""


def build(kind, qscheme="per_tensor_symmetric", **parameters):
    return OBSERVERS[kind](qscheme=qscheme, **SCHEMES[qscheme], **parameters)


def assert_same_state(one, other):
    one.solve()
    other.solve()
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
