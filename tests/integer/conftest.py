"""The project of the command line's tests, with a finished calibration in it."""

from tests.export.conftest import calibrated_project, project  # noqa: F401  fixtures
