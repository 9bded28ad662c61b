"""Every command that a page shows prints what the page shows."""

from __future__ import annotations

import re
import sys

import pytest

from tests.test_readme import BLOCKS

METRIC = re.compile(r"[+-]?\d\.\d{4}")
TOLERANCE = 0.02  # another processor rounds otherwise, and training carries that on
COMMANDS = [block for block in BLOCKS if block.language == "console"]


def assert_same(shown: str, real: str) -> None:
    """Equal text, but for the time and, within a tolerance, the metrics."""
    assert without_numbers(shown) == without_numbers(real)
    for stated, measured in zip(METRIC.findall(shown), METRIC.findall(real), strict=True):
        assert abs(float(stated) - float(measured)) <= TOLERANCE, f"{stated} is stated, {measured} came out"


def without_numbers(text: str) -> list[str]:
    lines = [METRIC.sub("#", line.rstrip()) for line in text.strip().splitlines()]
    return [re.sub(r"^time( +)[\d.]+ s$", r"time\1#", line) for line in lines]


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_a_command_prints_what_the_page_shows(block, ran):
    if "topics" in block.text and sys.version_info[:2] != (3, 11):
        pytest.skip("the numbers are those of the documentation of Python 3.11")
    command, _, shown = block.text.partition("\n")
    assert_same(shown, ran(command.removeprefix("$ ")).shown)
