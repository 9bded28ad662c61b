"""What holds for every test: one thread, one seed. Warnings are errors by ``pyproject.toml``."""

import os
import random

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the workers of xdist share the cores

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    torch.manual_seed(0)
