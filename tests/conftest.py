"""What holds for every test: one thread, one seed, no clock. Warnings are errors by ``pyproject.toml``.

Properties are tried on the same examples every time; ``--hypothesis-profile search`` looks for new ones.
"""

import os
import random

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the workers of xdist share the cores

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# A busy machine takes its time over an example, and over making one; neither is a failure.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeat", settings.get_profile("search"), derandomize=True)
settings.load_profile("repeat")


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    torch.manual_seed(0)
