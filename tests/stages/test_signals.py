"""Signals outside of the steps end a run, wherever they come."""

import contextlib
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
    with ending_by_signals(can_insist=True):
        faulty = Faulty()
        del faulty
    assert shown == ["here"]


def test_a_signal_whose_error_a_library_makes_into_its_own_ends_the_block_as_a_signal():
    with pytest.raises(Interrupted) as caught, ending_by_signals("again", can_insist=True):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise ValueError("no schema") from error
    assert (str(caught.value), caught.value.exit_code) == ("stopped by SIGTERM", 143)


def test_code_that_passes_over_what_went_wrong_does_not_pass_over_a_signal():
    done = []
    with pytest.raises(Interrupted), ending_by_signals("again", can_insist=True):
        with contextlib.suppress(Exception):
            signal.raise_signal(signal.SIGTERM)
        done.append("went on")
    assert done == []


def test_a_signal_that_nobody_heard_of_is_said_at_the_end():
    done = []
    with pytest.raises(Interrupted) as caught, ending_by_signals("again", can_insist=True):
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        done.append("the rest")
    assert (caught.value.exit_code, caught.value.command, done) == (130, "again", ["the rest"])


def test_a_signal_that_a_block_did_not_look_at_ends_what_comes_behind_it():
    done = []
    with pytest.raises(Interrupted) as caught, ending_by_signals("again", can_insist=True):
        with stop_request():
            signal.raise_signal(signal.SIGUSR1)
            done.append("the block")
        done.append("what comes behind it")
    assert (caught.value.exit_code, done) == (138, ["the block"])
