"""The mutation score keeps its aims; `make mutation` prints the whole table."""

from __future__ import annotations

import pytest

from tests.config import mutation


@pytest.fixture(scope="module")
def total():
    return mutation.run()["all"]


@pytest.mark.slow
def test_every_mutant_is_reported(total):
    assert total.total > 8000
    assert total.harmless > 200
    assert total.reported == total.total


@pytest.mark.slow
def test_the_shares_reach_their_aims(total):
    assert total.line / total.total >= 0.99
    assert total.suggested / total.suggestible >= 0.95
    assert total.single / total.total >= 0.95
