"""Numbers as they are shown."""

import pytest

from quantcfg.config.suggest import counted
from quantcfg.render.text import percent


@pytest.mark.parametrize(
    ("share", "digits", "shown"),
    [
        (1.0, 1, "100.0%"),
        (1 - 1e-9, 1, "99.9%"),
        (0.99951, 1, "99.9%"),
        (0.9994, 1, "99.9%"),
        (0.981, 1, "98.1%"),
        (0.0, 1, "0.0%"),
        (1 - 1e-9, 4, "99.9999%"),
        (0.99996, 0, "99%"),
    ],
)
def test_only_all_is_a_hundred_per_cent(share, digits, shown):
    assert percent(share, digits) == shown


def test_one_is_no_plural():
    assert [counted(n, "batch", "batches") for n in (0, 1, 2)] == ["0 batches", "1 batch", "2 batches"]
