"""Kill or fail a run at its system calls, by strace, resume it, and compare it with an undisturbed one.

``python trace.py PROJECT STAGE FAULT EVERY OFFSET [BUG]`` runs what ``COMMANDS`` has for ``STAGE`` in
``PROJECT`` once under strace, which numbers its write-side calls in the folder ``run``; then once for each
``EVERY``-th of them from ``OFFSET`` on, with the fault there (from the first that names a path, where
``OFFSET`` is the end of one):

    kill     SIGKILL on entering the call
    chain    the same, and again at the same place of each of the two runs that resume it
    ENOSPC   the call and all of its kind after it fail: the disk is full
    EIO      the call fails; so do EDQUOT, EROFS and EACCES
    lie      a write claims half of its bytes and does nothing
    order    no fault: file and directory are synchronised in the order that survives a power cut

Each run is a fork of this process, which imported everything and ran nothing; strace takes hold of it before
it begins. What was found is JSON. ``BUG`` is one of those of ``bugs.py``, which has to be noticed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from bugs import plant
from inject import TEMPORARY_MARK, contents, violations

from quantcfg.cli.main import main

CALLS = ("openat", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "rename", "renameat", "renameat2",
         "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir", "close")  # fmt: skip
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS", "EACCES")
RUN = ("-o", "run", "-q")
COMMANDS = {
    "calib": ("calib", "model.py", "config.yaml", *RUN),
    "qat": ("qat", "model.py", "config.yaml", *RUN),
    "from": ("calib", "model.py", "config.yaml", "--from", "source", *RUN),
    "export": ("export", "model.py", "source", "--format", "safetensors", "-o", "run/a.safetensors", "-q"),
}
ENTERED = re.compile(r"^(\d+) +(\w+)\((.*)")
PATH = re.compile(r'[<"](/[^>"]*)[>"]')


@dataclass(frozen=True)
class Call:
    """One write-side call: the ``number``-th of its ``name``, the paths it names, and its line."""

    name: str
    number: int
    paths: tuple[str, ...]
    line: str


@dataclass(frozen=True)
class Ran:
    """How a run ended; ``code`` is negative for a signal."""

    code: int
    said: str
    log: list[str]
    child: int


def run(arguments, *inject, traced=True):
    """Run a command line in a fork, under strace with ``-e inject=...``."""
    child = os.fork()
    if child == 0:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  it ends with the process
        sys.stderr = Path("stderr.txt").open("w")  # noqa: SIM115
        if traced:
            os.kill(os.getpid(), signal.SIGSTOP)
        code = main(arguments)
        sys.stderr.flush()
        os._exit(code)
    tracer = _attached(child, inject) if traced else None
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if tracer is not None:
        tracer.communicate()
    log = Path("strace.txt").read_text(errors="replace").splitlines() if traced else []
    return Ran(code, Path("stderr.txt").read_text(), log, child)


def _attached(child, inject):
    os.waitpid(child, os.WUNTRACED)
    options = ["-f", "-y", "-s", "0", "-o", "strace.txt", "-e", f"trace={','.join(CALLS)}"]
    faults = [part for each in inject for part in ("-e", f"inject={each}")]
    tracer = subprocess.Popen(
        ["strace", *options, *faults, "-p", str(child)], stderr=subprocess.PIPE, text=True
    )
    while "attached" not in (line := tracer.stderr.readline()):
        assert line, "strace ended before it took hold of the run"
    os.kill(child, signal.SIGCONT)
    return tracer


def calls_in(ran, folder):
    """The write-side calls of the main thread that concern a folder, each with its number."""
    counts, found, made = Counter(), [], set()
    for line in ran.log:
        entered = ENTERED.match(line)
        if entered is None or int(entered[1]) != ran.child:
            continue
        name = entered[2]
        counts[name] += 1
        paths = tuple(path for path in PATH.findall(entered[3]) if path.startswith(str(folder)))
        made |= set(paths) if "O_CREAT" in line else set()
        if paths and (name != "openat" or "O_CREAT" in line) and (name != "close" or paths[0] in made):
            found.append(Call(name, counts[name], paths, line))
    return found


def fault_at(kind, call):
    """The ``inject`` of a fault at a call, or None where it has no meaning."""
    if call.name == "close" and kind != "EIO":  # with what was written long ago: that is when a network tells
        return None
    if kind in ("kill", "chain"):
        return f"{call.name}:signal=SIGKILL:when={call.number}"
    if kind == "ENOSPC":
        return f"{call.name}:error=ENOSPC:when={call.number}+" if _needs_space(call) else None
    if kind == "lie":
        size = re.search(r", (\d+)\) +=", call.line)
        is_lying = call.name == "write" and size is not None and int(size[1]) > 1
        is_log = call.paths[0].endswith((".jsonl", "log.txt", ".lock"))
        return f"write:retval={int(size[1]) // 2}:when={call.number}" if is_lying and not is_log else None
    return f"{call.name}:error={kind}:when={call.number}"


def _needs_space(call):
    return call.name in ("openat", "write", "fsync", "ftruncate", "mkdir", "rename")


def emptied(folder):
    """The folder that a command writes to, as it is before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def one_point(command, kind, call, whole):
    """Disturb, look, resume, compare; everything that is wrong, and whether the run was killed or failed."""
    folder = Path("run").absolute()
    emptied(folder)
    again = [*command, "--force" if command[0] == "export" else "--resume"]
    inject = fault_at(kind, call)
    ran = run(command, inject)
    wrong = violations(folder) if folder.exists() else []
    wrong += ["a traceback"] if "Traceback" in ran.said or ran.code == 7 else []
    speechless = (
        kind == "ENOSPC" and call.name == "write" and ran.code == 120
    )  # nothing can be written to stderr
    if kind in ERRORS and ran.code not in (0, 2, 6) and not speechless:
        wrong.append(f"exit code {ran.code}: {ran.said}")
    if kind == "lie" and ran.code == 0 and contents(folder) != whole:
        wrong.append("a lie was believed")
    for _ in range(2 if kind == "chain" else 0):
        run(again, inject)
        wrong += violations(folder) if folder.exists() else []
    resumed = run(again, traced=False)
    wrong += [f"resuming ended with {resumed.code}: {resumed.said}"] if resumed.code else []
    wrong += ["resumed to other bits"] if not resumed.code and contents(folder) != whole else []
    wrong += ["leftovers"] if any(TEMPORARY_MARK in str(p) for p in folder.rglob("*")) else []
    return [f"{kind} at {call.name} {call.number} of {call.paths[-1]}: {each}" for each in wrong], ran.code


def misordered(ran, folder):
    """Files that got their final name before they, or after which not their folders, were synchronised.

    Logs are appended to under their names: they count by the manifest of their folder.
    """
    dirty, wrong, unsynced = set(), [], {}
    for line in ran.log:
        entered = ENTERED.match(line)
        if entered is None:
            continue
        name, paths = entered[2], [p for p in PATH.findall(entered[3]) if p.startswith(str(folder))]
        if not paths:
            continue
        if name in ("write", "pwrite64", "ftruncate") or (name == "openat" and "O_CREAT" in line):
            dirty.add(paths[-1])
        elif name == "fsync":
            dirty.discard(paths[0])
            unsynced.pop(paths[0], None)
        elif name.startswith("rename") and TEMPORARY_MARK in paths[-1]:  # no final name, and as dirty
            dirty = {paths[-1] if path == paths[0] else path for path in dirty}
        elif name.startswith("rename") and TEMPORARY_MARK in paths[0]:
            torn = [path for path in dirty if path == paths[0] or path.startswith(f"{paths[0]}/")]
            wrong += [f"{path} was renamed before it was synchronised" for path in torn]
            early = [path for path in dirty if counts_with(path, Path(paths[-1]))]
            wrong += [f"{paths[-1]} counts on {path}, which was not synchronised" for path in early]
            unsynced[str(Path(paths[-1]).parent)] = paths[-1]
    return wrong + [
        f"the folder of {path} was not synchronised after its renaming" for path in unsynced.values()
    ]


def counts_with(log, final):
    """Whether a file that is appended to has to be durable when another one gets its final name."""
    is_log = not log.endswith(".lock") and TEMPORARY_MARK not in log
    return final.name == "manifest.json" and is_log and log.startswith(f"{final.parent}/")


def first_of(calls, offset):
    """The index of a call that is given by it, or by the end of a path that it is the first to name."""
    if offset.isdecimal():
        return int(offset)
    return next(i for i, call in enumerate(calls) if any(path.endswith(offset) for path in call.paths))


def report(project, stage, kind, every, offset):
    os.chdir(project)
    torch.set_num_threads(1)
    command = list(COMMANDS[stage])
    folder = Path("run").absolute()
    if "source" in command:
        done = run([*COMMANDS["calib"], "-o", "source"], traced=False)
        assert done.code == 0, done.said
    emptied(folder)
    ran = run(command)
    assert ran.code == 0, ran.said
    whole, calls = contents(folder), calls_in(ran, folder)
    if kind == "order":
        renames = sum(call.name.startswith("rename") for call in calls)
        return {"points": renames, "calls": {}, "ended": {}, "violations": misordered(ran, folder)}
    points, ended, wrong = Counter(), Counter(), []
    possible = [call for call in calls if fault_at(kind, call) is not None]
    for call in possible[first_of(possible, offset) :: every]:
        found, code = one_point(command, kind, call, whole)
        wrong += found
        points[call.name] += 1
        ended[str(code)] += 1
    return {"points": points.total(), "calls": points, "ended": ended, "violations": wrong}


if __name__ == "__main__":
    given_project, given_stage, given_kind, given_every, given_offset, *bugs = sys.argv[1:]
    for bug in bugs:
        plant(bug)
    print(json.dumps(report(given_project, given_stage, given_kind, int(given_every), given_offset)))
