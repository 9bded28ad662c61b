"""Many names in few words, which stand for exactly those names."""

import re
from itertools import product

import pytest
from hypothesis import given, strategies as st

from quantcfg.render.names import summarize


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ""),
        (["stem"], "stem"),
        (["a.0", "a.1"], "a.{0,1}"),
        (["a.0", "a.1", "a.2", "a.3"], "a.{0..3}"),
        (["a.0", "a.2", "a.5"], "a.{0,2,5}"),
        (["l1.0.c", "l1.1.c", "l2.0.c", "l2.1.c"], "l{1,2}.{0,1}.c"),
        (["l1.0.c", "l1.1.c", "l2.0.c"], "l1.{0,1}.c, l2.0.c"),
        (["a", "b", "c", "d", "e"], "a, b, c, ... (2 more)"),
        (["fc10", "fc9"], "fc{9,10}"),
        (["#z", "#1", "#2"], "#z, #{1,2}"),
        (["fc01", "fc1", "fc2"], "fc01, fc{1,2}"),
        (["x٣"], "x٣"),
    ],
)
def test_names_are_summarized(names, expected):
    assert summarize(names) == expected


def expand(text):
    """The names that a summary stands for."""
    found = []
    for pattern in text.split(", ") if "{" not in text else re.split(r", (?![^{]*\})", text):
        parts = re.split(r"\{([^}]*)\}", pattern)
        choices = [values(part) if index % 2 else [part] for index, part in enumerate(parts)]
        found += ["".join(choice) for choice in product(*choices)]
    return found


def values(inner):
    first, dots, last = inner.partition("..")
    return [str(n) for n in range(int(first), int(last) + 1)] if dots else inner.split(",")


@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=30))
def test_a_summary_stands_for_exactly_its_names(numbers):
    names = [f"layer{a}.{b}.conv" for a, b in sorted(numbers)]
    summary = summarize(names)
    if "more)" not in summary:
        assert sorted(expand(summary)) == sorted(names)
