"""Progress: plain lines where there is no terminal, nothing when quiet."""

import io
import threading

import pytest
from rich.console import Console

from quantcfg.render import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by hand."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_few_seconds_and_one_at_the_end(capsys, clock):
    with progress.LineProgress().task("calibrating", 8) as task:
        for _ in range(8):
            clock[0] += 2.0
            task.advance(loss=0.123456)
    captured = capsys.readouterr()

    assert captured.out == ""
    assert captured.err.splitlines() == [
        "calibrating: 3/8 batches, loss 0.1235, 0.5/s, 10 s left",
        "calibrating: 6/8 batches, loss 0.1235, 0.5/s, 4 s left",
        "calibrating: 8/8 batches, loss 0.1235, 16.0 s",
    ]


def test_the_time_left_counts_what_a_resumed_run_did_itself(capsys, clock):
    with progress.LineProgress().task("training", 100, done=90, unit="step") as task:
        for _ in range(5):
            clock[0] += 2.0
            task.advance()
    assert capsys.readouterr().err.splitlines()[0] == "training: 93/100 steps, 0.5/s, 14 s left"


def test_without_a_length_the_time_so_far_is_given(capsys, clock):
    with progress.LineProgress().task("calibrating", None) as task:
        clock[0] += 6.0
        task.advance()
    assert capsys.readouterr().err.splitlines() == [
        "calibrating: 1 batch, 0.167/s, 6 s so far",
        "calibrating: 1 batch, 6.0 s",
    ]


def test_a_task_that_fails_does_not_claim_to_be_done(capsys, clock):
    with pytest.raises(KeyError), progress.LineProgress().task("calibrating", 3):
        raise KeyError
    assert capsys.readouterr().err == ""


def test_bars_are_drawn_as_the_work_goes_on_and_by_no_thread(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console, before = Console(file=io.StringIO(), force_terminal=True, width=100), threading.active_count()
    with progress.BarProgress(console).task("training", 30) as task:
        assert threading.active_count() == before  # another one's locks would stay locked in a forked worker
        for _ in range(30):
            clock[0] += 0.06
            task.advance(loss=0.5)
    drawn = console.file.getvalue()
    assert "20/30" in drawn
    assert "19/30" not in drawn


def test_quiet_says_nothing(capsys):
    quiet = progress.progress_on_stderr(quiet=True)
    quiet.note("something")
    with quiet.task("calibrating", 2) as task:
        task.advance(loss=1.0)
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_lines_and_a_terminal_bars(monkeypatch):
    assert isinstance(progress.progress_on_stderr(quiet=False), progress.LineProgress)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for terminal, kind in (("xterm", progress.BarProgress), ("dumb", progress.LineProgress)):
        monkeypatch.setenv("TERM", terminal)
        assert isinstance(progress.progress_on_stderr(quiet=False), kind)
