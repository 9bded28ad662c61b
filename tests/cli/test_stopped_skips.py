"""A run that goes on reads the batches again that it was given before, and a signal ends that at once."""

from signal import Signals

import pytest

from tests.cli.stopping import CALIB, QAT, STOPPABLE, stopped
from tests.run_files import contents

SEEN = """
import sys
calls |= {"train": 0, "optimizer": 0}

def seen(name, batches):
    for x, y in batches:
        stop_at(name)
        print(name, calls[name], file=sys.stderr)
        yield x + torch.rand(1) / 9, y

def calib_data():
    return seen("calib", DataLoader(dataset(1), batch_size=8, shuffle=True))

def train_data():
    return seen("train", DataLoader(dataset(2), batch_size=8, shuffle=True))

def optimizer(model):
    stop_at("optimizer")
    return torch.optim.SGD(model.parameters(), lr=0.05)
"""
CATCHING = SEEN.replace("stop_at(name)", "try: stop_at(name)\n        except BaseException: pass")
SLOW = pytest.mark.slow
SIGNALS = [15, pytest.param(2, marks=SLOW), 10]


@pytest.fixture
def seeing(stoppable):
    """A project that says which batches it reads, to calibrate and to train on."""
    stoppable.model(STOPPABLE + SEEN)
    stoppable.write(
        "config.yaml", "version: 1\nqconfig: {global: w8a8}\ncalib: {batches: 5}\nqat: {epochs: 2}"
    )
    return stoppable


def read(done, name):
    """The batches that the run said it read."""
    words = [line.split() for line in done.err.splitlines()]
    return [int(line[1]) for line in words if line[0] == name]


def said(done):
    return [line for line in done.err.splitlines() if line.startswith(("error: ", "hint: "))]


def of(command, number):
    again = f"quantcfg {' '.join(command)} -o run --resume -q"
    return [f"error: stopped by {Signals(number).name}", f"hint: resume with: {again}"]


def begun(project, monkeypatch, command, stop):
    """Make a run that is stopped and one that is not."""
    assert project.run(*command, "-o", "whole", "-q").code == 0
    assert stopped(project, monkeypatch, stop, *command, "-o", "run").code == 143


def goes_on(project, command):
    assert project.run(*command, "-o", "run", "-q", "--resume").code == 0
    assert contents(project.path / "run") == contents(project.path / "whole")


# 4 of the 6 batches of the first epoch; the first batch is read once before, and held against what it was
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("batch", [2, pytest.param(4, marks=SLOW), pytest.param(5, marks=SLOW)])
def test_a_signal_ends_a_run_that_skips_what_it_has_trained_on(seeing, monkeypatch, number, batch):
    begun(seeing, monkeypatch, QAT, "loss:4:15")
    before = contents(seeing.path / "run")
    done = stopped(seeing, monkeypatch, f"train:{batch}:{number}", *QAT, "-o", "run", "--resume")
    assert (done.code, said(done)) == (128 + number, of(QAT, number))
    assert read(done, "train") == list(range(1, batch))
    assert contents(seeing.path / "run") == before
    goes_on(seeing, QAT)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_calibration_that_skips(seeing, monkeypatch, number):
    begun(seeing, monkeypatch, CALIB, "calib:4:15")
    done = stopped(seeing, monkeypatch, f"calib:3:{number}", *CALIB, "-o", "run", "--resume")
    assert (done.code, said(done)) == (128 + number, of(CALIB, number))
    assert read(done, "calib") == [1, 2]
    goes_on(seeing, CALIB)


def test_a_loader_that_passes_over_errors_ends_after_its_batch(seeing, monkeypatch):
    seeing.model(STOPPABLE + CATCHING)
    begun(seeing, monkeypatch, QAT, "loss:4:15")
    done = stopped(seeing, monkeypatch, "train:3:15", *QAT, "-o", "run", "--resume")
    assert (done.code, said(done)) == (143, of(QAT, 15))
    assert read(done, "train") == [1, 2, 3]
    goes_on(seeing, QAT)


def test_a_signal_before_the_first_skipped_batch_is_not_forgotten(seeing, monkeypatch):
    begun(seeing, monkeypatch, QAT, "loss:4:15")
    done = stopped(seeing, monkeypatch, "optimizer:1:15", *QAT, "-o", "run", "--resume")
    assert (done.code, said(done)) == (143, of(QAT, 15))
    assert read(done, "train") == [1]
    goes_on(seeing, QAT)


def test_a_signal_after_the_skipped_batches_finishes_the_step(seeing, monkeypatch):
    begun(seeing, monkeypatch, QAT, "loss:4:15")
    done = stopped(seeing, monkeypatch, "train:6:15", *QAT, "-o", "run", "--resume")
    assert said(done)[0] == "error: stopped by SIGTERM after step 5, which is saved"
    goes_on(seeing, QAT)
