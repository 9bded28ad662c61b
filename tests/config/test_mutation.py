"""The mutation score keeps its aims; `python tests/config/mutation.py` prints the whole table."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("mutation", Path(__file__).with_name("mutation.py"))
mutation = importlib.util.module_from_spec(spec)


@pytest.fixture(scope="module")
def total():
    import sys

    sys.modules["mutation"] = mutation
    spec.loader.exec_module(mutation)
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
