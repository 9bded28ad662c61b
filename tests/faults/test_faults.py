"""A sample of what the scripts beside this file do to runs; all of it is done by ``slow`` tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.project import write_project

HERE = Path(__file__).parent
EVERY_CALL = [("kill", 1), ("ENOSPC", 1), ("EIO", 1), ("lie", 1), ("chain", 5), ("EDQUOT", 9), ("EROFS", 9),
              ("EACCES", 9)]  # fmt: skip


def strace_obstacle():
    """Why strace cannot be used here; empty when it can."""
    try:
        tried = subprocess.run(
            ["strace", "-o", os.devnull, "true"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "strace is not installed"
    return "" if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()}"


OBSTACLE = strace_obstacle()
needs_strace = pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)


@pytest.fixture
def project(tmp_path):
    write_project(tmp_path)
    return tmp_path


def found_by(script, project, *arguments):
    """What one of the scripts beside this file found."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, HERE / script, project, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def held(found, totals, kind):
    """Count what was found under the name of the fault; whether nothing was wrong."""
    for call, count in found["calls"].items():
        totals[f"{kind} at {call}"] += count
    totals[f"{kind}, all calls: resumed bit-identical"] += found["points"]
    return found["violations"] == []


@pytest.mark.parametrize(
    ("stage", "kind", "every", "offset"),
    [("calib", "half", 26, 3), ("calib", "full", 26, 2), ("calib", "error", 26, 7), ("qat", "kill", 201, 20)],
)
def test_a_sample_of_faults_leaves_nothing_torn(project, stage, kind, every, offset):
    found = found_by("inject.py", project, stage, kind, every, offset)
    assert found["violations"] == []
    assert found["points"] >= 2


def test_the_harness_notices_a_writer_that_writes_in_place(project):
    assert found_by("inject.py", project, "calib", "half", 7, 2, "in-place")["violations"]


@needs_strace
@pytest.mark.parametrize(
    ("stage", "kind", "every"),
    [
        ("calib", "kill", 17),
        ("calib", "ENOSPC", 19),
        ("calib", "lie", 5),
        ("qat", "kill", 131),
        ("export", "kill", 7),
    ],
)
def test_a_sample_of_faults_of_the_system_leaves_nothing_torn(project, stage, kind, every, totals):
    found = found_by("trace.py", project, stage, kind, every, 1)
    assert held(found, totals, kind), found["violations"]
    assert found["points"] >= 2


@needs_strace
@pytest.mark.parametrize(("stage", "names"), [("calib", 10), ("qat", 10), ("export", 2)])
def test_every_name_is_given_in_the_order_that_survives_a_power_cut(project, stage, names, totals):
    found = found_by("trace.py", project, stage, "order", 1, 0)
    assert held(found, totals, "order")
    assert found["points"] >= names


@needs_strace
@pytest.mark.parametrize(("stage", "bug", "least"), [("calib", "no-fsync", 10), ("qat", "no-append-sync", 3)])
def test_the_order_of_a_writer_that_does_not_synchronise_is_noticed(project, stage, bug, least):
    found = found_by("trace.py", project, stage, "order", 1, 0, bug)
    assert len(found["violations"]) >= least


@needs_strace
def test_random_generators_that_are_not_restored_are_noticed(project):
    published = "run/checkpoints/6"  # it is resumed from the one before, which was saved within an epoch
    found = found_by("trace.py", project, "qat", "kill", 10_000, published, "no-random")
    assert [violation.partition(": ")[2] for violation in found["violations"]] == ["resumed to other bits"]


def test_random_generators_that_are_not_restored_are_noticed_by_kills_at_random_instants(project):
    found = found_by("kills.py", project, "qat", 200, 1, 0, "no-random")
    assert any(violation.endswith("resumed to other bits") for violation in found["violations"])


def test_kills_at_random_instants_change_nothing(project, totals):
    found = found_by("kills.py", project, "qat", 3, 1)
    assert found["violations"] == []
    totals["random instants: SIGKILL"] += found["counts"]["kills"]
    totals["random instants: runs resumed bit-identical"] += found["counts"]["equal"]


def counted(found, totals):
    """Count how damaged runs ended; whether nothing was wrong."""
    for end, count in found["ended"].items():
        totals[f"damaged unfinished runs: {end}"] += count
    return found["violations"] == []


@pytest.mark.parametrize(("stage", "every"), [("calib", 73), ("qat", 211)])
def test_a_sample_of_damages_is_mended_or_said(project, stage, every, totals):
    found = found_by("damage.py", project, stage, every, 10)
    assert counted(found, totals), found["violations"]
    assert sum(found["ended"].values()) >= 6


def test_checkpoints_that_are_not_compared_with_their_manifests_are_noticed(project):
    exchanged = "checkpoints/16/model.safetensors of another step"
    found = found_by("damage.py", project, "qat", 10_000, exchanged, "no-verify")
    said = [violation.partition(": ")[2] for violation in found["violations"]]
    assert said == ["other bits, and not a word"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["calib", "qat"])
def test_every_damage_is_mended_or_said(project, stage, totals):
    found = found_by("damage.py", project, stage, 1, 0)
    assert counted(found, totals), found["violations"]
    assert sum(found["ended"].values()) > 400


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["half", "full"])
@pytest.mark.parametrize("stage", ["calib", "qat"])
def test_every_fault_leaves_nothing_torn(project, stage, kind, totals):
    found = found_by("inject.py", project, stage, kind, 1, 1)
    totals[f"{kind}, within Python: resumed bit-identical"] += found["points"]
    assert found["violations"] == []
    assert found["points"] > 50


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize(("kind", "every"), EVERY_CALL)
@pytest.mark.parametrize("stage", ["calib", "qat"])
def test_every_fault_of_the_system_leaves_nothing_torn(project, stage, kind, every, totals):
    found = found_by("trace.py", project, stage, kind, every, 0)
    assert held(found, totals, kind), found["violations"]
    assert found["points"] * every > 10


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize("kind", ["kill", "ENOSPC", "EIO"])
@pytest.mark.parametrize("stage", ["from", "export"])
def test_every_fault_of_what_writes_without_data_leaves_nothing_torn(project, stage, kind, totals):
    found = found_by("trace.py", project, stage, kind, 1, 0)
    assert held(found, totals, kind), found["violations"]
    assert found["points"] >= 10


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["calib", "qat"])
def test_two_hundred_kills_at_random_instants_change_nothing(project, stage, totals):
    found = found_by("kills.py", project, stage, 200, 7)
    assert found["violations"] == []
    totals["random instants: SIGKILL"] += found["counts"]["kills"]
    totals["random instants: runs resumed bit-identical"] += found["counts"]["equal"]
