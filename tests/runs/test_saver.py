"""Writes beside the work: in order, one at a time, and no error is lost."""

import os
import threading

import pytest

from quantcfg.errors import Interrupted, RunError
from quantcfg.runs.saver import Saver, settled


def fail():
    raise RunError("the disk is full")


def test_writes_run_beside_the_work_and_in_order():
    saver, gate, done = Saver(), threading.Event(), []
    saver.begin(lambda: (gate.wait(), done.append(1)))
    assert done == []
    gate.set()
    saver.begin(lambda: done.append(2))
    saver.wait()
    assert done == [1, 2]


@pytest.mark.parametrize("then", [lambda saver: saver.begin(int), Saver.wait])
def test_an_error_is_raised_by_the_next_call_and_only_once(then):
    saver = Saver()
    saver.begin(fail)
    with pytest.raises(RunError, match="the disk is full"):
        then(saver)
    saver.wait()


def test_an_interruption_that_is_not_saved_is_no_interruption():
    saver = Saver()
    with pytest.raises(RunError), settled(saver):
        saver.begin(fail)
        raise Interrupted("stopped after step 4, which is saved")


def test_what_ended_the_block_is_told_rather_than_a_failed_write():
    saver = Saver()
    with pytest.raises(KeyError), settled(saver):
        saver.begin(fail)
        raise KeyError


def test_the_end_of_the_block_waits():
    saver, gate, done = Saver(), threading.Event(), []
    with settled(saver):
        saver.begin(lambda: (gate.wait(), done.append(1)))
        threading.Timer(0.05, gate.set).start()
    assert done == [1]


def test_no_process_is_forked_in_the_middle_of_a_write():
    saver, gate, done = Saver(), threading.Event(), []
    saver.begin(lambda: (gate.wait(), done.append(1)))
    threading.Timer(0.05, gate.set).start()
    child = os.fork()
    if child == 0:
        os._exit(len(done))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    saver.begin(fail)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(RunError):
        saver.wait()


def test_without_a_thread_the_write_is_made_at_once(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = []
    Saver().begin(lambda: done.append(1))
    assert done == [1]
