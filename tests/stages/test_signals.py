"""Signals outside of the steps end a run, wherever they come."""

import os
import signal
import sys
import threading

import pytest

from quantcfg.errors import Interrupted
from quantcfg.stages.signals import ending_by_signals, stop_request

LIMIT_S = 600  # for what takes no time, on a machine with much else to do


class Deaf:
    """What Python raises nothing out of."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_whose_error_python_drops_is_not_lost(times):
    hook, left = sys.unraisablehook, [Deaf() for _ in range(times)]
    with pytest.raises(Interrupted) as caught, ending_by_signals("again", can_insist=True):
        while left:
            left.pop()
        threading.Event().wait(LIMIT_S)
    assert (caught.value.exit_code, caught.value.command) == (143, "again")
    assert sys.unraisablehook is hook


def test_other_errors_that_python_drops_are_shown_as_before(monkeypatch):
    class Faulty:
        def __del__(self):
            raise ValueError("here")

    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: shown.append(str(lost.exc_value)))
    with ending_by_signals():
        faulty = Faulty()
        del faulty
    assert shown == ["here"]


def test_a_signal_that_a_block_did_not_look_at_ends_what_comes_behind_it():
    done = []
    with pytest.raises(Interrupted) as caught, ending_by_signals("again", can_insist=True):
        with stop_request():
            signal.raise_signal(signal.SIGUSR1)
            done.append("the block")
        done.append("what comes behind it")
    assert (caught.value.exit_code, done) == (138, ["the block"])
