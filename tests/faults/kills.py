"""Kill a run at random instants, resume it, and compare it with one that nobody disturbed.

``python kills.py PROJECT STAGE KILLS SEED [SECONDS [BUG]]`` kills runs of ``quantcfg STAGE`` in ``PROJECT``
by SIGKILL at instants spread over their time. Every third logical run is killed once, the others up to five
times, the runs that resume it among them; some resumed runs are stopped by SIGTERM instead. It goes on until
both ``KILLS`` and ``SECONDS`` are reached, says how far it is every minute, and prints what it found as JSON.
``BUG`` is one of those of ``bugs.py``, which has to be noticed: it ends once it was.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from bugs import plant
from inject import TEMPORARY_MARK, begin_in_a_thread, contents, violations

from quantcfg.cli.main import main
from quantcfg.runs.saver import Saver

Saver.begin = begin_in_a_thread


def start(arguments):
    """Start a command line in a fork."""
    child = os.fork()
    if child == 0:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  it ends with the process
        sys.stderr = Path("stderr.txt").open("w")  # noqa: SIM115
        code = main(arguments)
        sys.stderr.flush()
        os._exit(code)
    return child


def finish(child):
    """The exit code of a run that is left to itself, and what it said."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), Path("stderr.txt").read_text()


def disturb(arguments, instant, number):
    """Signal a run that many seconds after its start; its exit code."""
    child = start(arguments)
    end = time.monotonic() + instant
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, number)
    return finish(child)[0]


def one_run(command, whole, seconds, chance, counts):
    """Disturb one logical run again and again, let it finish, and compare; what is wrong."""
    folder, wrong = Path("run").absolute(), []
    shutil.rmtree(folder, ignore_errors=True)
    for attempt in range(1 if chance.random() < 1 / 3 else chance.randint(2, 5)):
        number = signal.SIGTERM if attempt and chance.random() < 0.2 else signal.SIGKILL
        code = disturb([*command, "--resume"], chance.uniform(0, seconds), number)
        counts["kills" if code == -signal.SIGKILL else "stops" if code == 143 else "ended before"] += 1
        wrong += violations(folder) if folder.exists() else []
        wrong += [f"exit code {code}"] if code not in (-signal.SIGKILL, -signal.SIGTERM, 143, 0) else []
    code, said = finish(start([*command, "--resume"]))
    wrong += [f"resuming ended with {code}: {said}"] if code else []
    wrong += ["resumed to other bits"] if not code and contents(folder) != whole else []
    wrong += ["leftovers"] if any(TEMPORARY_MARK in str(p) for p in folder.rglob("*")) else []
    counts["runs"] += 1
    counts["equal"] += not wrong
    return wrong


def undisturbed(command):
    """What a run that nobody disturbs leaves, and its seconds."""
    shutil.rmtree("run", ignore_errors=True)
    began = time.monotonic()
    code, said = finish(start(command))
    assert code == 0, said
    return contents(Path("run").absolute()), time.monotonic() - began


def report(project, stage, kills, seed, seconds, *, until_wrong):
    os.chdir(project)
    torch.set_num_threads(1)
    command, chance = [stage, "model.py", "config.yaml", "-o", "run", "-q"], random.Random(seed)
    counts, wrong, whole = Counter(), [], undisturbed(command)[0]
    began = last = time.monotonic()
    while (counts["kills"] < kills or time.monotonic() - began < seconds) and not (until_wrong and wrong):
        if counts["runs"] % 10 == 0:  # how long a run takes depends on what else the machine does
            usual = undisturbed(command)[1]
        found = one_run(command, whole, usual, chance, counts)
        print("".join(f"violation: {one}\n" for one in found), end="", file=sys.stderr, flush=True)
        wrong += found
        if time.monotonic() - last > 60:
            last = time.monotonic()
            print(
                f"{last - began:.0f} s: {dict(counts)}, {len(wrong)} violations", file=sys.stderr, flush=True
            )
    return {"counts": counts, "violations": wrong}


if __name__ == "__main__":
    given_project, given_stage, given_kills, given_seed, *rest = sys.argv[1:]
    given_seconds, *bugs = rest or ["0"]
    for bug in bugs:
        plant(bug)
    numbers = int(given_kills), int(given_seed), float(given_seconds)
    print(json.dumps(report(given_project, given_stage, *numbers, until_wrong=bool(bugs))))
