"""The project of the command line's tests, with a finished calibration in it."""

import pytest

from tests.cli.conftest import project  # noqa: F401  a fixture


@pytest.fixture
def calibrated_project(project):  # noqa: F811  the fixture above
    assert project.run("calib", "model.py", "config.yaml", "-o", "run", "-q").code == 0
    return project
