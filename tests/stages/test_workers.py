"""Workers of a DataLoader end by their parent, and by no signal to all processes."""

import os
import random
import subprocess
import sys

import pytest
import torch
from torch.multiprocessing import reductions
from torch.utils.data import DataLoader, TensorDataset

from quantcfg.errors import UserCodeError
from quantcfg.stages.user_code import user_code
from quantcfg.stages.workers import lasting_workers
from tests.stages.test_data import source

# what torch says of two workers on one core
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

LIMIT_S = 600  # for what takes seconds, on a machine with much else to do


def begin(*, lasting, **settings):
    """A pass of two workers, both of which have given a batch already."""
    loader = DataLoader(TensorDataset(torch.arange(40)), num_workers=2, **settings)
    with lasting_workers(loader if lasting else None):
        iterator = iter(loader)
    return loader, iterator, [int(next(iterator)[0]) for _ in range(2)]


def signal_all(iterator, name):
    """Send a signal from a process that is not the parent of the workers.

    Without an object of Python for it: torch's error could come in its ``__del__``, which would lose it.
    """
    pids = [str(worker.pid) for worker in iterator._workers]
    child = os.posix_spawnp("kill", ["kill", "-s", name, *pids], os.environ)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1"])
def test_a_pass_goes_on_after_a_signal_to_all(name):
    _, iterator, begun = begin(lasting=True)
    signal_all(iterator, name)
    assert begun + [int(batch) for (batch,) in iterator] == list(range(40))


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_worker_that_is_about_to_begin_outlives_a_signal(name):
    loader = DataLoader(TensorDataset(torch.arange(40)), num_workers=2)
    with lasting_workers(loader):
        iterator = iter(loader)
        signal_all(iterator, name)  # most likely they import something still
    assert [int(batch) for (batch,) in iterator] == list(range(40))


def test_without_this_workers_die():
    _, iterator, _ = begin(lasting=False)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        signal_all(iterator, "TERM")
        # torch raises at SIGCHLD, if the worker is still there to ask why: so wait, and leave it there.
        # Reading on could meet a broken pipe of theirs before.
        for worker in iterator._workers:
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)


class Gone:
    """The handle of a batch in a worker that died after it had sent it."""

    def detach(self):
        raise ConnectionResetError(104, "Connection reset by peer")


def test_a_worker_that_died_while_its_batch_was_fetched_is_told_from_the_users_own_connections():
    with pytest.raises(UserCodeError) as died, user_code("train_data(), in batch 3,"):
        reductions.rebuild_storage_fd(torch.UntypedStorage, Gone(), 8)
    assert died.value.message.startswith("a worker process of a DataLoader died: ConnectionResetError: ")
    with pytest.raises(UserCodeError) as raised, user_code("train_data(), in batch 3,"):
        Gone().detach()
    assert raised.value.message.startswith("train_data(), in batch 3, raised ConnectionResetError: ")


def test_the_parent_can_end_a_worker():
    _, iterator, _ = begin(lasting=True)
    worker = iterator._workers[0]
    worker.terminate()
    worker.join(LIMIT_S)
    assert worker.exitcode == 0


def test_a_worker_ends_with_a_parent_that_was_killed():
    script = """
import os, time
from tests.stages.test_workers import begin
_, iterator, _ = begin(lasting=True)
print(*(worker.pid for worker in iterator._workers), flush=True)
os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=False)
    # the workers hold the pipe: it ends with them
    assert done.returncode == -9 and len(done.stdout.split()) == 2


def test_the_function_of_the_user_is_called_and_stays():
    seen = torch.zeros(2).share_memory_()

    def note(worker):
        seen[worker] = 1

    loader, *_ = begin(lasting=True, worker_init_fn=note)
    assert seen.tolist() == [1, 1]
    assert loader.worker_init_fn is note


class Noisy(TensorDataset):
    def __getitem__(self, index):
        return torch.rand(1) + random.random()


def test_what_workers_that_persist_draw_is_a_function_of_seed_and_epoch():
    def passes(*epochs):
        data = source(lambda: DataLoader(Noisy(torch.arange(4)), num_workers=1, persistent_workers=True))
        return [torch.cat([batch for _, batch in data.batches(epoch)]) for epoch in epochs]

    assert torch.equal(passes(0, 1)[1], passes(1)[0])
