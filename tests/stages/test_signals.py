"""Signals outside of the steps end a run, wherever they come."""

import os
import signal
import sys
import threading
from contextlib import suppress

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


def test_a_signal_whose_error_somebody_catches_is_not_lost():
    with pytest.raises(Interrupted) as caught, ending_by_signals("again", can_insist=True):
        with suppress(Exception):  # as imports in torch do
            signal.raise_signal(signal.SIGTERM)
        threading.Event().wait(LIMIT_S)
    assert (str(caught.value), caught.value.exit_code) == ("stopped by SIGTERM", 143)


@pytest.mark.parametrize("error", [ValueError("a schema"), SystemExit(3), KeyboardInterrupt()])
def test_an_error_that_is_made_of_a_signal_is_that_signal(error):
    with pytest.raises(Interrupted) as caught, ending_by_signals("again", can_insist=True):
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            raise error from None
    assert (str(caught.value), caught.value.command) == ("stopped by SIGTERM", "again")


def test_the_next_signal_has_the_effect_it_had_before_until_the_first_is_lost():
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append("before"))
    try:
        with pytest.raises(Interrupted), ending_by_signals(can_insist=True):
            try:
                signal.raise_signal(signal.SIGUSR1)
            except Interrupted:
                signal.raise_signal(signal.SIGUSR1)
                raise
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == ["before"]


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
