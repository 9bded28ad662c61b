"""Which error of a rank is that of all of them."""

from contextlib import suppress

import pytest

from quantcfg.errors import RunError
from quantcfg.stages.ranks import Ranks


def raised(ranks):
    with pytest.raises(RunError) as caught, ranks.alike():
        raise RunError("all of them")
    return caught.value


def test_an_error_of_all_ranks_stays_theirs_in_another_one():
    ranks = Ranks()
    outer = ValueError("the user's own")
    outer.__cause__ = raised(ranks)
    assert ranks.whereabouts.is_common(outer)


def test_an_error_of_one_rank_is_its_own_after_one_of_all_was_swallowed():
    ranks = Ranks()
    raised(ranks)
    assert not ranks.whereabouts.is_common(ValueError("of one"))


def test_a_signal_is_of_the_rank_that_it_came_to():
    ranks, signal = Ranks(), KeyboardInterrupt()
    with suppress(KeyboardInterrupt), ranks.alike():
        raise signal
    assert not ranks.whereabouts.is_common(signal)
