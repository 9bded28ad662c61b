"""Damage each file of an unfinished run, go on with it, and compare it with one that nobody disturbed.

``python damage.py PROJECT STAGE EVERY OFFSET [BUG]`` kills ``quantcfg STAGE`` in ``PROJECT`` before its end
and does to a copy of what it left each ``EVERY``-th of all damages from ``OFFSET`` on: each of ``DAMAGES`` to
each of its files, then each of ``MOVES`` to the directory. ``OFFSET`` is a number or the end of a name. With
``--resume``, and with ``--checkpoint`` and the newest one, it has to end in the same bits or in an error of
its own. What was found is JSON. ``BUG`` is one of those of ``bugs.py``, which has to be noticed.
"""

import json
import os
import shutil
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import torch
from bugs import plant
from inject import KILLED, TEMPORARY_MARK, Fault, contents, run

from quantcfg.runs.checkpoint import checkpoint_paths

SETTINGS = {"calib": (), "qat": ("--set", "qat.best={metric: accuracy}")}
OWN_ERRORS = (1, 2, 6)
LEFT, OTHER, ASIDE = Path("left"), Path("other"), Path("aside")


def flipped(data, place):
    changed = bytearray(data)
    changed[place] ^= 4
    return bytes(changed)


def in_its_place(make):
    def do(path):
        path.unlink()
        make(path)

    return do


def rewritten(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def of_another_run(path):
    twin = OTHER / path.relative_to("run")
    shutil.copy(twin if twin.is_file() else OTHER / "plan.json", path)


def of_another_step(path):
    twins = [twin for twin in path.parent.parent.glob(f"*/{path.name}") if twin != path]
    shutil.copy(twins[0] if twins else OTHER / "plan.json", path)


def linked(path):
    shutil.move(path, ASIDE / path.name)
    path.symlink_to((ASIDE / path.name).absolute())


DAMAGES = {
    "deleted": Path.unlink,
    "empty": rewritten(lambda data: b""),
    "cut in half": rewritten(lambda data: data[: len(data) // 2]),
    "without its end": rewritten(lambda data: data[:-1]),
    "flipped at its begin": rewritten(lambda data: flipped(data or b" ", 0)),
    "flipped in the middle": rewritten(lambda data: flipped(data or b" ", len(data) // 2)),
    "flipped at its end": rewritten(lambda data: flipped(data or b" ", -1)),
    "zeroed": rewritten(lambda data: data[: len(data) // 3] + bytes(16) + data[len(data) // 3 + 16 :]),
    "longer": rewritten(lambda data: data + b"\0\xff"),
    "doubled": rewritten(lambda data: data + data),
    "null": rewritten(lambda data: b"null"),
    "a list": rewritten(lambda data: b"[]"),
    "an object": rewritten(lambda data: b"{}"),
    "deep": rewritten(lambda data: b"[" * 100_000),
    "a large number": rewritten(lambda data: b"1" * 5000),
    "of another run": of_another_run,
    "of another step": of_another_step,
    "a directory": in_its_place(Path.mkdir),
    "a pipe": in_its_place(os.mkfifo),
    "a link to nothing": in_its_place(lambda path: path.symlink_to("nowhere")),
    "a link to itself": in_its_place(lambda path: path.symlink_to(path.name)),
    "a link to what was there": linked,
}


def removed(name):
    return lambda folder: shutil.rmtree(folder / name, ignore_errors=True)


def taken_from_another_run(name):
    def do(folder):
        removed(name)(folder)
        if (OTHER / name).is_dir():
            shutil.copytree(OTHER / name, folder / name)

    return do


def behind_a_link(name):
    def do(folder):
        if (folder / name).is_dir():
            linked(folder / name)

    return do


def renamed(folder):
    newest = checkpoint_paths(folder / "checkpoints")[-1]
    newest.rename(newest.with_name("700"))


MOVES = {
    **{f"without {name}": removed(name) for name in ("config", "checkpoints", "calib", "calib/checkpoints")},
    **{f"{name} of another run": taken_from_another_run(name) for name in ("config", "checkpoints", "calib")},
    **{f"{name} behind a link": behind_a_link(name) for name in ("config", "checkpoints", "calib")},
    "a renamed checkpoint": renamed,
    "an empty checkpoint": lambda folder: (folder / "checkpoints/701").mkdir(),
    "a checkpoint that is a pipe": lambda folder: os.mkfifo(folder / "checkpoints/702"),
    "a lock of garbage": lambda folder: (folder / ".lock").write_bytes(b"\xff{"),
    "what a killed writer left": lambda folder: (folder / f"config/.x{TEMPORARY_MARK}1").mkdir(),
}


def killed(command, calls):
    """Leave a run that was killed before the ``calls``-th of its calls."""
    shutil.rmtree("run", ignore_errors=True)
    code, said, _ = run(command, Fault(Path("run").absolute(), "kill", calls))
    assert code == KILLED, said


def judged(code, said, whole):
    """What is wrong with the end of a run."""
    if code == 0:
        return [] if contents(Path("run")) == whole else ["other bits, and not a word"]
    is_said = code in OWN_ERRORS and said.startswith("error") and "Traceback" not in said
    return [] if is_said else [f"exit code {code}: {said}"]


def one_damage(name, damage, command, whole, ended):
    """Do it to a copy and go on with that in both ways; what is wrong."""
    wrong = []
    newest = checkpoint_paths(LEFT / "checkpoints")[-1].name
    for way in (("--resume",), ("--checkpoint", f"run/checkpoints/{newest}")):
        for folder in ("run", ASIDE):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(LEFT, "run")
        ASIDE.mkdir()
        damage(Path("run"))
        aside = contents(ASIDE)
        code, said, _ = run([*command, *way])
        wrong += [f"{name}, {way[0]}: {each}" for each in judged(code, said, whole)]
        wrong += [] if contents(ASIDE) == aside else [f"{name}, {way[0]}: something else was changed"]
        ended["same bits" if code == 0 else "own error"] += 1
    return wrong


def all_damages():
    """Each by its name, as a function of the run directory."""
    files = sorted(path.relative_to(LEFT) for path in LEFT.rglob("*") if path.is_file())
    for file, (name, damage) in product(files, DAMAGES.items()):
        yield f"{file} {name}", lambda folder, file=file, damage=damage: damage(folder / file)
    yield from MOVES.items()


def first_of(damages, offset):
    """The index of a damage that is given by it, or by the end of its name."""
    if offset.isdecimal():
        return int(offset)
    return next(i for i, (name, _) in enumerate(damages) if name.endswith(offset))


def report(project, stage, every, offset):
    os.chdir(project)
    torch.set_num_threads(1)
    command = [stage, "model.py", "config.yaml", "-o", "run", "-q", *SETTINGS[stage]]
    code, said, calls = run(command, Fault(Path("run").absolute(), "none", 0))
    assert code == 0, said
    whole = contents(Path("run"))
    for folder, settings in ((OTHER, ("--seed", "7")), (LEFT, ())):
        killed([*command, *settings], calls * 4 // 5)
        Path("run").rename(folder)
    ended, wrong = Counter(), []
    damages = list(all_damages())
    for name, damage in damages[first_of(damages, offset) :: every]:
        wrong += one_damage(name, damage, command, whole, ended)
    return {"ended": ended, "violations": wrong}


if __name__ == "__main__":
    given_project, given_stage, given_every, given_offset, *bugs = sys.argv[1:]
    for bug in bugs:
        plant(bug)
    print(json.dumps(report(given_project, given_stage, int(given_every), given_offset)))
