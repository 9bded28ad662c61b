"""A sample of the fault injection of ``inject.py``, and all of it under the marker ``slow``."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CONFTEST = (HERE.parent / "cli" / "conftest.py").read_text()


@pytest.fixture
def project(tmp_path):
    """The small project of the command line's tests, for another process."""
    for name, variable in (("model.py", "MODEL"), ("config.yaml", "CONFIG")):
        text = re.search(rf'^{variable} = """\\?\n(.*?)^"""$', CONFTEST, re.DOTALL | re.MULTILINE)
        (tmp_path / name).write_text(text[1])
    return tmp_path


def inject(project, *arguments):
    """What ``inject.py`` found."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, HERE / "inject.py", project, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("stage", "kind", "every", "offset"),
    [("calib", "kill", 23, 5), ("calib", "half", 26, 3), ("calib", "full", 26, 2), ("calib", "error", 26, 7),
     ("qat", "kill", 80, 20)],
)  # fmt: skip
def test_a_sample_of_faults_leaves_nothing_torn(project, stage, kind, every, offset):
    found = inject(project, stage, kind, every, offset)
    assert found["violations"] == []
    assert found["points"] >= 3


def test_the_harness_notices_a_writer_that_writes_in_place(project):
    assert inject(project, "calib", "half", 7, 2, "in-place")["violations"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "half", "full", "error"])
@pytest.mark.parametrize("stage", ["calib", "qat"])
def test_every_fault_leaves_nothing_torn(project, stage, kind):
    found = inject(project, stage, kind, 1, 1)
    assert found["violations"] == []
    assert found["points"] > 50
