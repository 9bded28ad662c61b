"""The same through torchrun itself, which ends what is left when a rank is lost."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.distributed import projects

pytestmark = pytest.mark.slow
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def torchrun(folder, size, *arguments, fault=""):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FAULT": fault or ":0:0:"}
    command = [*TORCHRUN, str(size), "-m", "quantcfg", *arguments]
    return subprocess.Popen(command, cwd=folder.path, env=environment, stderr=subprocess.PIPE, text=True)


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


def test_a_rank_that_hangs_is_named_in_time(folder):
    arguments = ("qat", "model.py", "config.yaml", "-q", "-o", "run", "--timeout", "5")
    begun = time.monotonic()
    _, err = torchrun(folder, 2, *arguments, fault=f"loss:1:3:{int(signal.SIGSTOP)}").communicate()
    assert "error: rank 1 did not answer for 5 s in step 2 (epoch 1," in err
    assert time.monotonic() - begun < 180


def test_an_error_of_one_rank_is_said_once(folder):
    run = torchrun(folder, 2, "qat", "model.py", "config.yaml", "-q", "-o", "run", fault="loss:1:3:raise")
    _, err = run.communicate()
    assert err.count("error:") == 1
    assert "rank 1: the model, in batch 5 of train_data(), raised ValueError: no such image" in err
    assert "exitcode  : 5 " in err


def test_a_signal_to_torchrun_saves_and_goes_on(folder):
    config = projects.small()
    config["qat"]["epochs"] = 500
    projects.write(folder.path, config)
    run = torchrun(folder, 2, "qat", "model.py", "config.yaml", "-q", "-o", "run")
    metrics = folder.path / "run" / "metrics.jsonl"
    while not (metrics.is_file() and '"step": 10' in metrics.read_text()):
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.1)
    run.terminate()
    _, err = run.communicate()
    assert err.count("error: stopped by SIGTERM after step") == 1
    assert "hint: resume with: torchrun --standalone --nproc-per-node 2 -m quantcfg qat " in err
    assert any((folder.path / "run" / "checkpoints").iterdir())
