"""The counts of the fault tests, printed at their end."""

from collections import Counter

import pytest

TOTALS = pytest.StashKey[Counter]()


def pytest_configure(config):
    config.stash[TOTALS] = Counter()


@pytest.fixture
def totals(request):
    """What is counted over all tests of a session."""
    return request.config.stash[TOTALS]


def pytest_terminal_summary(terminalreporter, config):
    counted = config.stash[TOTALS]
    if counted:
        terminalreporter.section("faults")
        for name in sorted(counted):
            terminalreporter.write_line(f"{counted[name]:6d}  {name}")
