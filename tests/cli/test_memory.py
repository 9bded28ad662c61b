"""Memory of a long run, as the system counts it."""

import sys

import pytest

from tests.cli.conftest import MODEL

MEASURED = """

import os
from pathlib import Path

import torch.nn.functional as F

steps = 0


def loss(outputs, batch):
    global steps
    steps += 1
    if steps % 1000 == 0:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with open("memory.txt", "a") as file:
            print(pages * os.sysconf("SC_PAGE_SIZE"), file=file)
    return F.cross_entropy(outputs, batch[1])
"""
LEAK = """
kept = []
average = loss


def loss(outputs, batch):
    kept.append(outputs.detach().new_zeros(1 << 8))
    return average(outputs, batch)
"""


def memory_of_training(project, more, accumulate):
    """Bytes in use after every 1,000 of 10,000 batches, in 20 epochs, each evaluated and saved."""
    project.model(MEASURED + more, base=MODEL.replace("dataset(2)", "dataset(2, 4000)"))
    values = ("qat.epochs=20", "qat.ema=0.9", f"qat.accumulate={accumulate}")
    options = [word for value in values for word in ("--set", value)]
    assert project.run("qat", "model.py", "config.yaml", "-o", "run", "-q", *options).code == 0
    return list(map(int, (project.path / "memory.txt").read_text().split()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
@pytest.mark.parametrize(
    ("more", "accumulate", "grows"),
    [("", 1, False), ("", 2, False), (LEAK, 1, True)],
    ids=["as it is", "gradients accumulated", "a leak is noticed"],
)
def test_memory_does_not_grow_over_ten_thousand_batches(project, more, accumulate, grows):
    used = memory_of_training(project, more, accumulate)
    assert len(used) == 10
    # Caches and the allocator settle in the first 2,000; 1 KiB a batch then makes 8 MiB.
    assert (used[-1] - used[1] > 4 << 20) is grows
