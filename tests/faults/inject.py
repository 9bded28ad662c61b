"""Kill or fail a run at every write-side call, resume it, and compare it with one that nobody disturbed.

``python inject.py PROJECT STAGE FAULT EVERY OFFSET [BUG]`` runs ``quantcfg STAGE`` in ``PROJECT`` once
undisturbed, then once for each ``EVERY``-th call from ``OFFSET`` on, with the fault there:

    kill    the process ends before the call
    half    the process ends in the middle of a write, or after any other call
    full    the disk is full from that call on
    error   that call alone fails with an input/output error

Each run is a fork of this process, which imported everything and ran nothing. What was found is JSON.
``BUG`` is one of those of ``bugs.py``, which has to be noticed.
"""

import errno
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import torch
import torch._dynamo  # torch.optim would, at the first optimizer of every fork: more than a second each
from bugs import plant

import quantcfg.cli.app
import quantcfg.cli.session
import quantcfg.render.progress
import quantcfg.render.results
import quantcfg.stages.calib
import quantcfg.stages.qat  # noqa: F401  before the forks
from quantcfg.cli.main import main
from quantcfg.errors import RunError
from quantcfg.runs.checkpoint import checkpoint_paths, load_checkpoint
from quantcfg.runs.manifest import verify
from quantcfg.runs.saver import Saver
from quantcfg.runs.writer import TEMPORARY_MARK

# All calls in one thread, so that each has the same number in every run. (`kills.py` leaves the threads.)
begin_in_a_thread, Saver.begin = Saver.begin, lambda self, write: write()
VOLATILE = {"log.txt", "timing.json", "manifest.json", ".lock"}
KILLED = 137
CALLS = ("open", "write", "fsync", "ftruncate", "replace", "rename", "mkdir", "unlink", "rmdir")
NEEDS_SPACE = ("open", "write", "fsync", "ftruncate", "mkdir")


class Fault:
    """Counts the write-side calls below a directory and strikes at the ``at``-th, counted from 1."""

    def __init__(self, root, kind, at):
        self.root, self.kind, self.at = str(root), kind, at
        self.count = 0
        self.handles = set()
        self.real = {name: getattr(os, name) for name in CALLS}

    def install(self):
        for name in CALLS:
            setattr(os, name, self._wrapper(name))

    def _wrapper(self, name):
        real = self.real[name]

        def call(target, *args, **kwargs):
            if not self._concerns(name, target, args, kwargs):
                return real(target, *args, **kwargs)
            self.count += 1
            self._strike_before(name, target, args)
            result = real(target, *args, **kwargs)
            if name == "open":
                self.handles.add(result)
            if self.kind == "half" and self.count == self.at:
                os._exit(KILLED)
            return result

        return call

    def _concerns(self, name, target, args, kwargs):
        if isinstance(target, int):
            return target in self.handles
        if name == "open" and not args[0] & os.O_CREAT:
            return False
        return kwargs.get("dir_fd") is not None or str(target).startswith(self.root)

    def _strike_before(self, name, target, args):
        if self.count == self.at and self.kind == "kill":
            os._exit(KILLED)
        if self.count == self.at and self.kind == "half" and name == "write":
            self.real["write"](target, bytes(args[0])[: len(args[0]) // 2])
            os._exit(KILLED)
        if self.count >= self.at and self.kind == "full" and name in NEEDS_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.count == self.at and self.kind == "error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def run(arguments, fault=None):
    """Run a command line in a fork; exit code, stderr, and how many calls there were."""
    reading, writing = os.pipe()
    errors = Path("stderr.txt")
    child = os.fork()
    if child == 0:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  it ends with the process
        sys.stderr = errors.open("w")
        if fault is not None:
            fault.install()
        code = main(arguments)
        sys.stderr.flush()
        real_write = fault.real["write"] if fault else os.write
        real_write(writing, str(fault.count if fault else 0).encode())
        os._exit(code)
    os.close(writing)
    count = os.read(reading, 64)
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, errors.read_text(), int(count or 0)


def contents(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in VOLATILE]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def violations(folder):
    """What is wrong with the files under final names."""
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if any(TEMPORARY_MARK in part for part in relative.parts) or not path.is_file():
            continue
        if path.suffix == ".json":
            found += [f"{relative} is torn" for _ in [0] if not parses(path)]
    for run_folder in (folder, folder / "calib"):
        for path in checkpoint_paths(run_folder / "checkpoints"):
            found += faults_of(load_checkpoint, path)
        if (run_folder / "manifest.json").exists():
            found += faults_of(verify, run_folder)
    return found


def parses(path):
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def faults_of(check, path):
    try:
        check(path)
    except RunError as error:
        return [error.message]
    return []


def one_point(stage, kind, at, whole):
    """Disturb, look, resume, compare; whether the fault struck, and everything that is wrong."""
    folder = Path("run").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    command = [stage, "model.py", "config.yaml", "-o", "run", "-q"]
    fault = Fault(folder, kind, at)
    code, said, count = run(command, fault)
    struck = code == KILLED or count >= at
    wrong = violations(folder) if folder.exists() else []
    wrong += [f"exit code {code}: {said}"] if kind in ("full", "error") and code not in (0, 2, 6) else []
    wrong += ["a traceback"] if "Traceback" in said else []
    code, said, _ = run([*command, "--resume"])
    wrong += [f"resuming ended with {code}: {said}"] if code else []
    wrong += ["resumed to other bits"] if not code and contents(folder) != whole else []
    wrong += ["leftovers"] if any(TEMPORARY_MARK in str(p) for p in folder.rglob("*")) else []
    return struck, [f"{kind} at call {at}: {each}" for each in wrong]


def report(project, stage, kind, every, offset):
    os.chdir(project)
    torch.set_num_threads(1)
    code, said, _ = run([stage, "model.py", "config.yaml", "-o", "whole", "-q", "--force"])
    assert code == 0, said
    whole = contents(Path("whole"))
    points, wrong, at = Counter(), [], offset
    while True:
        struck, found = one_point(stage, kind, at, whole)
        wrong += found
        if not struck:
            break
        points[kind] += 1
        at += every
    return {"points": sum(points.values()), "violations": wrong}


if __name__ == "__main__":
    given_project, given_stage, given_kind, given_every, given_offset, *bugs = sys.argv[1:]
    for bug in bugs:
        plant(bug)
    print(json.dumps(report(given_project, given_stage, given_kind, int(given_every), int(given_offset))))
