"""An evaluation is broken off by a signal, and made by the run that goes on, to the same bits."""

import json

import pytest

from tests.cli.stopping import QAT, STOPPABLE, stopped
from tests.run_files import contents

# Evaluations have the batches 1 to 3 (float), 4 to 6 (calibrated), 7 to 9, ... of every second step.
SEEN = """
import sys

class Net(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
    def forward(self, x):
        self.seen += 1
        return super().forward(x)

calls["eval"] = 0

def eval_data():
    for batch in DataLoader(dataset(3), batch_size=16):
        stop_at("eval")
        print("evaluated", calls["eval"], file=sys.stderr)
        yield batch
"""
OWN = """
def evaluate(model, data):
    wrong = 0.0
    {}
    return {{"wrong": wrong}}
"""
PLAIN = OWN.format("for x, y in data: wrong += float((model(x).argmax(1) != y).sum())")
STUBBORN = OWN.format("""try:
        for x, y in data: wrong += float((model(x).argmax(1) != y).sum())
    except BaseException:
        pass""")
EVERYTHING = """
version: 1
qconfig: {global: w8a8_lsq}
calib: {batches: 2}
qat:
  epochs: 2
  accumulate: 2
  optimizer: {name: AdamW, lr: 0.01, quantizer_lr: 0.001}
  scheduler: {name: cosine}
  schedule: {quantize_activations_after: 1}
  bn: keep
  ema: 0.75
  eval_every: 2
  best: {metric: accuracy, mode: max, patience: 3}
"""

SLOW = pytest.mark.slow
BROKEN_OFF = [
    pytest.param(7, 2, id="first batch", marks=SLOW),
    pytest.param(8, 2, id="within an epoch"),
    pytest.param(9, 2, id="last batch", marks=SLOW),
    pytest.param(11, 3, id="after an epoch"),
    pytest.param(14, 4, id="in the second epoch", marks=SLOW),
    pytest.param(17, 6, id="the last one"),
]


@pytest.fixture
def evaluated(stoppable):
    """Two epochs of three steps, evaluated after 2, 3 (the end of the epoch), 4 and 6, and never stopped."""
    stoppable.model(STOPPABLE + SEEN)
    stoppable.write("config.yaml", EVERYTHING)
    assert stoppable.run(*QAT, "-o", "whole", "-q").code == 0
    return stoppable


def last_evaluated(done):
    return int([line for line in done.err.splitlines() if line.startswith("evaluated")][-1].split()[1])


def rows(project):
    return list(map(json.loads, (project.path / "run/metrics.jsonl").read_text().splitlines()))


def goes_on(project):
    done = project.run(*QAT, "-o", "run", "-q", "--resume")
    assert done.code == 0, done.err
    assert contents(project.path / "run") == contents(project.path / "whole")


@pytest.mark.parametrize(("batch", "step"), BROKEN_OFF)
def test_an_evaluation_is_broken_off_and_made_again(evaluated, monkeypatch, batch, step):
    done = stopped(evaluated, monkeypatch, f"eval:{batch}:15", *QAT, "-o", "run")
    assert done.code == 143
    assert done.err.endswith(
        f"error: stopped by SIGTERM after step {step}, which is saved\n"
        "hint: resume with: quantcfg qat model.py config.yaml -o run -q --resume\n"
    )
    assert last_evaluated(done) == batch
    assert step not in [row["step"] for row in rows(evaluated) if "evaluation" in row]
    goes_on(evaluated)


@pytest.mark.parametrize("evaluate", [pytest.param(PLAIN, marks=SLOW), STUBBORN])
@pytest.mark.parametrize("batch", [pytest.param(7, marks=SLOW), 11, pytest.param(17, marks=SLOW)])
def test_what_an_evaluate_of_the_user_makes_of_a_part_is_not_taken(evaluated, monkeypatch, evaluate, batch):
    evaluated.model(STOPPABLE + SEEN + evaluate)
    more = ("--set", "qat.best.metric=wrong", "--set", "qat.best.mode=min")
    assert evaluated.run(*QAT, "-o", "whole", "-q", "--force", *more).code == 0
    done = stopped(evaluated, monkeypatch, f"eval:{batch}:2", *QAT, "-o", "run", *more)
    assert (done.code, last_evaluated(done)) == (130, batch)
    assert evaluated.run(*QAT, "-o", "run", "-q", "--resume", *more).code == 0
    assert contents(evaluated.path / "run") == contents(evaluated.path / "whole")


def test_the_same_evaluation_may_be_broken_off_again(evaluated, monkeypatch):
    stopped(evaluated, monkeypatch, "eval:8:15", *QAT, "-o", "run")
    for batch in (2, 3):  # counted from each start, where the first one is compared with what it was
        done = stopped(evaluated, monkeypatch, f"eval:{batch}:10", *QAT, "-o", "run", "--resume")
        assert done.code == 138
        assert "error: stopped by SIGUSR1 after step 2, which is saved\n" in done.err
    goes_on(evaluated)


@pytest.mark.parametrize("batch", [8, *(pytest.param(batch, marks=SLOW) for batch in (11, 17))])
def test_a_run_lost_between_an_evaluation_and_its_checkpoint_makes_it_again(evaluated, monkeypatch, batch):
    stopped(evaluated, monkeypatch, f"eval:{batch}:15", *QAT, "-o", "run")

    with monkeypatch.context() as patch:
        patch.setattr("quantcfg.stages.records.save", None)
        assert evaluated.run(*QAT, "-o", "run", "-q", "--resume").code == 7
    assert "evaluation" in rows(evaluated)[-1]
    goes_on(evaluated)


@pytest.mark.parametrize("batch", [8, pytest.param(11, marks=SLOW)])
def test_the_checkpoint_of_an_evaluation_made_again_has_the_generators_of_its_step(
    evaluated, monkeypatch, batch
):
    stopped(evaluated, monkeypatch, f"eval:{batch}:15", *QAT, "-o", "run")
    evaluated.model(STOPPABLE.replace("os.kill(os.getpid(), int(number))", "raise ValueError") + SEEN)
    assert stopped(evaluated, monkeypatch, "loss:2:-1", *QAT, "-o", "run", "--resume").code == 5
    goes_on(evaluated)


# within an epoch, after one and within the last one
@pytest.mark.parametrize(("patience", "batch", "step"), [(1, 8, 2), (1, 11, 3), (2, 14, 4)])
def test_an_evaluation_that_ends_the_training_ends_it_when_made_again(
    evaluated, monkeypatch, patience, batch, step
):
    never_better = OWN.format("wrong = sum(1.0 for _ in data)")
    evaluated.model(STOPPABLE + SEEN + never_better)
    more = ("--set", "qat.best.metric=wrong", "--set", f"qat.best.patience={patience}")
    assert evaluated.run(*QAT, "-o", "whole", "-q", "--force", *more).code == 0
    assert stopped(evaluated, monkeypatch, f"eval:{batch}:15", *QAT, "-o", "run", *more).code == 143
    assert f"checkpoints/{step}/manifest.json" in evaluated.names("run")
    assert evaluated.run(*QAT, "-o", "run", "-q", "--resume", *more).code == 0
    assert contents(evaluated.path / "run") == contents(evaluated.path / "whole")
    assert json.loads((evaluated.path / "run/result.json").read_text())["num_epochs"] < 3


def test_a_second_signal_does_not_wait_for_the_batch(evaluated, monkeypatch):
    again = "os.kill(os.getpid(), int(number))"
    evaluated.model(STOPPABLE.replace(again, f"{again}; {again}; raise AssertionError") + SEEN)
    done = stopped(evaluated, monkeypatch, "eval:8:15", *QAT, "-o", "run")
    assert done.code == 143
    assert done.err.endswith(
        "error: stopped by SIGTERM\nhint: resume with: quantcfg qat model.py config.yaml -o run -q --resume\n"
    )
    evaluated.model(STOPPABLE + SEEN)
    goes_on(evaluated)


@pytest.mark.parametrize("batch", [2, 5])
def test_the_evaluations_of_a_calibration_end_at_once(evaluated, monkeypatch, batch):
    done = stopped(evaluated, monkeypatch, f"eval:{batch}:15", *QAT, "-o", "run")
    assert done.code == 143
    assert done.err.endswith(
        "error: stopped by SIGTERM\nhint: resume with: quantcfg qat model.py config.yaml -o run -q --resume\n"
    )
    assert f"evaluated {batch}" not in done.err  # not even this batch
    goes_on(evaluated)
