"""Whatever a model file does, the command works or says in one line what went wrong, and where."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.misbehaviour import ENDS, WORKS

SAMPLE = {
    "sys.exit in a data function",
    "os._exit in the forward",
    "os._exit in a thread",
    "sys.exit in a method that torch calls",
    "an exception of its own root",
    "an exception that says escape codes",
    "an empty loader",
    "one iterator for ever",
    "a killed worker",
    "a worker that raises",
    "a source that is not UTF-8",
    "prints past Python",
    "chdir",
    "an infinite loader",
    "batches of one",
    "double as the default",
    "names that steer the terminal",
    "a thread left running",
    "stdout closed below",
}


def sampled(kinds):
    """The kinds, of which all but the sample are slow."""
    return [kind if kind in SAMPLE else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory):
    """The kinds that are tested, by name and stage: line of the code, exit code, stdout, stderr."""
    calls = (getattr(item, "callspec", None) for item in request.session.items if item.path == request.path)
    kinds = [call.params["kind"] for call in calls if call is not None]
    here, folder = Path(__file__).parent, tmp_path_factory.mktemp("misbehaviour")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, here / "misbehaviour.py", folder, *kinds]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {(kind, stage): tuple(rest) for kind, stage, *rest in json.loads(done.stdout)}


@pytest.mark.parametrize("kind", sampled(ENDS))
def test_what_cannot_work_ends_in_one_line_with_its_place(outcomes, kind):
    line, code, out, err = outcomes[kind, "calib"]
    first = err.splitlines()[0]
    assert (code, out) == (5, ""), err
    assert first.startswith(f"error: model.py:{line}: " if line else "error: ")
    assert ENDS[kind][1] in first
    assert len(first) < 1000
    assert "Traceback" not in err
    assert "\x1b" not in err


@pytest.mark.parametrize("kind", sampled(WORKS))
def test_what_can_work_works_and_leaves_stdout_to_the_result(outcomes, kind):
    _, code, out, err = outcomes[kind, "qat"]
    assert code == 0, err
    assert json.loads(out)["result"]["stage"] == "qat"


def test_there_are_more_than_thirty_kinds():
    assert len(ENDS) + len(WORKS) > 30
    assert ENDS.keys() | WORKS.keys() > SAMPLE


def test_an_os_exit_that_says_it_failed_is_left_alone(project):
    project.model("import os\nos._exit(9)\n")
    command = [sys.executable, "-m", "quantcfg", "calib", "model.py", "config.yaml", "-q"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run(command, cwd=project.path, env=environment, check=False).returncode == 9
