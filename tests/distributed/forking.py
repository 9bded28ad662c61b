"""Runs command lines in several ranks each, forked from one process that has imported everything once.

It reads jobs from stdin, one in each line as JSON, and prints what became of each: exit codes, stdout and
stderr by rank.
What torchrun sets is set here; torchrun itself is in test_torchrun.py.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

LIMIT_S = 300  # then a rank says where it is and ends
GRACE_S = 30  # of torchrun: how long a rank has to end by itself
ROOT = Path(__file__).parents[2]
_NEEDED = (
    "numpy.random",
    "quantcfg.cli.app",
    "quantcfg.cli.run_commands",
    "quantcfg.export.export",
    "quantcfg.render.progress",
    "quantcfg.render.results",
    "quantcfg.stages.meeting",
    "quantcfg.stages.qat",
    "torch._dynamo",  # by optimizers
)


@dataclass(frozen=True)
class Job:
    """One command line in ``size`` ranks; ``bug`` names a function of bugs.py to call in each first."""

    folder: str
    arguments: Sequence[str]
    size: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    bug: str = ""


@dataclass(frozen=True)
class Outcome:
    """What the ranks of a job came to."""

    codes: list[int]
    out: list[str]
    err: list[str]

    @property
    def message(self) -> str:
        """What all ranks wrote to stderr."""
        return "".join(self.err)


def run_jobs(*jobs: Job) -> list[Outcome]:
    """Run the jobs, one after the other."""
    return [Outcome(**json.loads(_asked(json.dumps(vars(job))))) for job in jobs]


def _asked(job: str) -> str:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(f"{job}\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, f"the process that forks ended with {server.wait()}"
    return answer


@cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.distributed.forking"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
    atexit.register(server.communicate)  # it ends with its input
    return server


def main() -> None:
    for name in _NEEDED:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


def run(job: dict[str, Any]) -> dict[str, Any]:
    from torch.distributed import TCPStore

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        children = [start(job, rank, store.port, Path(folder)) for rank in range(job["size"])]
        codes = wait(children)
        texts = {
            name: [(Path(folder) / f"{rank}.{name}").read_text() for rank in range(job["size"])]
            for name in ("out", "err")
        }
    return {"codes": codes, **texts}


def start(job: dict[str, Any], rank: int, port: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        faulthandler.dump_traceback_later(LIMIT_S - 10, exit=True)
        code = work(job, rank, port)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def work(job: dict[str, Any], rank: int, port: int) -> int:
    from quantcfg.cli.main import main as command

    os.chdir(job["folder"])
    os.environ |= job["environment"]
    if job["size"] > 1:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["size"], "LOCAL_WORLD_SIZE": job["size"]}
        os.environ |= {name: str(value) for name, value in own.items()}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    if job["bug"]:
        from tests.distributed import bugs

        getattr(bugs, job["bug"])(rank)
    return command(job["arguments"])


def wait(children: list[int]) -> list[int]:
    """The exit codes, negative for signals. As under torchrun, the first that fails ends the others."""
    codes, stopped = dict.fromkeys(children), set()
    deadline, is_told = time.monotonic() + LIMIT_S, False
    while None in codes.values():
        for child in [child for child, code in codes.items() if code is None]:
            ended, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if ended and os.WIFSTOPPED(status):
                stopped.add(child)
            elif ended:
                codes[child] = os.waitstatus_to_exitcode(status)
        left = [child for child, code in codes.items() if code is None]
        if not is_told and any(codes.values()):
            deadline, is_told = time.monotonic() + GRACE_S, True
            send(left, signal.SIGTERM)
        if stopped.issuperset(left) or time.monotonic() > deadline:
            send(left, signal.SIGKILL)
        time.sleep(0.01)
    return list(codes.values())


def send(children: Sequence[int], number: int) -> None:
    for child in children:
        os.kill(child, number)


if __name__ == "__main__":
    main()
