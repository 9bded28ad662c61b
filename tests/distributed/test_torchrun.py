"""The same through torchrun itself, which ends what is left when a rank is lost."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tests.distributed import projects

pytestmark = pytest.mark.slow
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def torchrun(folder, size, *arguments, fault=""):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FAULT": fault or ":0:0:"}
    command = [*TORCHRUN, str(size), "-m", "quantcfg", *arguments]
    return subprocess.Popen(
        command, cwd=folder.path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_a_command_for_one_process_says_so_once(folder):
    _, err = torchrun(folder, 2, "plan", "model.py", "config.yaml").communicate()
    assert err.count("error: this command works in one process\nhint: torchrun is for calib and qat\n") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named(folder, rank):
    run = torchrun(folder, 2, "qat", "model.py", "config.yaml", "-q", "-o", "run", fault=f"loss:{rank}:3:9")
    _, err = run.communicate()
    assert (
        err.count("error:") == err.count(f"error: rank {rank} ended without a word in step 2 (epoch 1,") == 1
    )


def test_a_rank_that_hangs_is_named(folder):
    arguments = ("qat", "model.py", "config.yaml", "-q", "-o", "run", "--timeout", "5")
    _, err = torchrun(folder, 2, *arguments, fault=f"loss:1:3:{int(signal.SIGSTOP)}").communicate()
    assert "error: rank 1 did not answer for 5 s in step 2 (epoch 1," in err


def test_an_error_of_one_rank_is_said_once(folder):
    run = torchrun(folder, 2, "qat", "model.py", "config.yaml", "-q", "-o", "run", fault="loss:1:3:raise")
    _, err = run.communicate()
    assert err.count("error:") == 1
    assert "rank 1: the model, in batch 5 of train_data(), raised ValueError: no such image" in err
    assert "exitcode  : 5 " in err


def wait_for_step(run, folder, step):
    metrics = folder.path / "run" / "metrics.jsonl"
    while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.1)


def test_a_signal_to_torchrun_saves_and_goes_on(folder):
    config = projects.small()
    config["qat"]["epochs"] = 500
    projects.write(folder.path, config)
    run = torchrun(folder, 2, "qat", "model.py", "config.yaml", "-q", "-o", "run")
    wait_for_step(run, folder, 10)
    run.terminate()
    _, err = run.communicate()
    assert err.count("error: stopped by SIGTERM after step") == 1
    assert "hint: resume with: torchrun --standalone --nproc-per-node 2 -m quantcfg qat " in err
    assert any((folder.path / "run" / "checkpoints").iterdir())


WORKERS = """
import time
class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return SIZE
    def __getitem__(self, index):
        time.sleep(0.05)
        x, y = dataset(2)[index]
        return x + torch.rand(6) / 9 * random.random(), y
def train_data():
    return DataLoader(Slow(), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True)
"""
QAT = ("qat", "model.py", "config.yaml", "-q", "-o")


def interrupt_all(run):
    """What a terminal does: torchrun, every rank and every worker of theirs gets the signal."""
    for pid in (run.pid, *family(run.pid)):
        with suppress(ProcessLookupError):  # a worker of the epoch before
            os.kill(pid, signal.SIGINT)


def terminate_torchrun(run):
    run.terminate()


def kill_a_rank(run):
    os.kill(children(run.pid)[-1], signal.SIGKILL)


def kill_a_worker(run):
    os.kill(children(children(run.pid)[-1])[-1], signal.SIGKILL)


def finish(run):
    _, err = run.communicate()
    assert run.returncode == 0, err


def children(pid):
    listed = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, check=False)
    return [int(child) for child in listed.stdout.split()]


def family(pid):
    return [found for child in children(pid) for found in (child, *family(child))]


def is_alive(pid):
    listed = subprocess.run(["ps", "-p", str(pid), "-o", "stat="], capture_output=True, check=False)
    return listed.stdout.strip()[:1] not in (b"", b"Z")


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (interrupt_all, "stopped by SIGINT after step "),
        (terminate_torchrun, "stopped by SIGTERM after step "),
        (kill_a_rank, "error: rank 1 ended without a word in "),
        (kill_a_worker, "a worker process of a DataLoader died: "),
    ],
)
def test_loader_workers_end_with_their_run_which_goes_on_in_more_ranks(folder, stop, message):
    config = projects.small()
    config["qat"]["epochs"] = 6
    projects.write(folder.path, config, WORKERS)
    finish(torchrun(folder, 2, *QAT, "whole"))
    run = torchrun(folder, 2, *QAT, "run")
    wait_for_step(run, folder, 1)
    everyone = family(run.pid)
    stop(run)
    _, err = run.communicate()
    assert err.count("error: ") == 1 and message in err, err
    deadline = time.monotonic() + 600
    while any(map(is_alive, everyone)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    finish(torchrun(folder, 3, *QAT, "run", "--resume"))
    folder.assert_close("run", "whole", rtol=1e-4, atol=1e-6)
