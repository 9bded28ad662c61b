"""Which error of a rank is that of all of them, and which one means that another is lost."""

from contextlib import suppress

import pytest
import torch.distributed as dist

from quantcfg.errors import RunError
from quantcfg.stages.ranks import Ranks, is_lost_rank


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


def test_a_connection_that_user_code_has_lost_is_no_lost_rank():
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("Connection reset by peer, where the images are")
    assert not is_lost_rank(caught.value)


def test_a_connection_that_a_collective_of_torch_has_lost_is_a_lost_rank():
    code = compile("raise RuntimeError('Connection closed by peer')", dist.__file__, "exec")
    with pytest.raises(RuntimeError) as caught:
        exec(code)
    error = ValueError("the model raised it")
    error.__cause__ = caught.value
    assert is_lost_rank(error)
