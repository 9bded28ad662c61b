"""What was damaged while a run was stopped is found, whichever part of it that is."""

import json
import shutil

import pytest

from tests.cli.conftest import CONFIG
from tests.cli.stopping import CALIB, QAT, STOPPABLE, stopped
from tests.run_files import contents

BEST = """
def evaluate(model, data):
    weight = next(value for name, value in model.state_dict().items() if name.endswith("conv.weight"))
    return {"change": (weight - build_model().conv.weight).abs().sum().item()}
"""


@pytest.fixture
def kept(stoppable, monkeypatch):
    """A run that was stopped after step 14 and evaluated best after step 2: it changes with each step."""
    stoppable.model(STOPPABLE + BEST)
    stoppable.write("config.yaml", CONFIG + "  eval_every: 2\n  best: {metric: change, mode: min}\n")
    assert stoppable.run(*QAT, "-o", "whole", "-q").code == 0
    assert json.loads((stoppable.path / "whole/result.json").read_text())["best_step"] == 2
    assert stopped(stoppable, monkeypatch, "loss:14:2", *QAT, "-o", "run").code == 130
    return stoppable


def test_a_run_does_not_go_on_without_the_model_that_is_to_be_kept(kept):
    (kept.path / "run/checkpoints/2/model.safetensors").write_bytes(b"")
    before = contents(kept.path / "run")
    size = (kept.path / "whole/checkpoints/2/model.safetensors").stat().st_size
    done = kept.run(*QAT, "-o", "run", "-q", "--resume")
    assert (done.code, done.err) == (
        6,
        "error: the model to be kept is lost: 'run/checkpoints/2' does not match its manifest: "
        f"'model.safetensors' has 0 bytes instead of {size}\n"
        "hint: --force starts again\n",
    )
    assert contents(kept.path / "run") == before


def test_a_model_that_is_lost_while_others_are_trained_ends_the_run(kept):
    source = (kept.path / "model.py").read_text()
    lose = "if os.path.exists('run/checkpoints/2/state.json'): os.remove('run/checkpoints/2/state.json')"
    kept.write("model.py", source.replace('stop_at("loss")', lose))
    done = kept.run(*QAT, "-o", "run", "-q", "--resume")
    assert (done.code, done.err) == (
        6,
        "error: the model to be kept is lost: 'run/checkpoints/2' does not match its manifest: "
        "'state.json' is missing\n"
        "hint: --force starts again\n",
    )
    assert "result.json" not in kept.names("run")


def test_an_older_checkpoint_may_count_on_a_best_one_that_was_dropped_since(stoppable, monkeypatch):
    stoppable.model(STOPPABLE + BEST)
    stoppable.write("config.yaml", CONFIG + "  eval_every: 2\n  best: {metric: change}\n")
    assert stoppable.run(*QAT, "-o", "whole", "-q").code == 0
    stopped(stoppable, monkeypatch, "loss:14:2", *QAT, "-o", "run")
    (stoppable.path / "run/checkpoints/14/state.json").unlink()
    assert stoppable.run(*QAT, "-o", "run", "-q", "--resume").code == 0
    assert contents(stoppable.path / "run") == contents(stoppable.path / "whole")


def test_a_calibration_in_the_place_of_that_of_a_training_is_noticed(stoppable, monkeypatch):
    stopped(stoppable, monkeypatch, "loss:8:2", *QAT, "-o", "run")
    stoppable.model(STOPPABLE.replace("dataset(1)", "dataset(4)"))
    assert stoppable.run(*CALIB, "-o", "other", "-q").code == 0
    shutil.rmtree(stoppable.path / "run/calib")
    shutil.copytree(stoppable.path / "other", stoppable.path / "run/calib")
    stoppable.model(STOPPABLE)
    done = stoppable.run(*QAT, "-o", "run", "-q", "--resume")
    assert (done.code, done.err) == (
        2,
        "error: 'run' was begun with another calibration: "
        "'run/calib' is not the one that training started from\n"
        "hint: --force starts again; -o names another directory\n",
    )


@pytest.mark.parametrize("text", ["[]", "{}"])
def test_a_calibration_that_is_damaged_before_the_first_checkpoint_is_named(stoppable, monkeypatch, text):
    stoppable.model(STOPPABLE.replace("os.kill(os.getpid(), int(number))", "raise ValueError"))
    assert stopped(stoppable, monkeypatch, "loss:1:-1", *QAT, "-o", "run").code == 5
    path = stoppable.path / "run/calib/result.json"
    size = path.stat().st_size
    path.write_text(text)
    done = stoppable.run(*QAT, "-o", "run", "-q", "--resume")
    assert (done.code, done.err) == (
        6,
        f"error: 'run/calib' does not match its manifest: 'result.json' has 2 bytes instead of {size}\n",
    )


def test_a_path_that_cannot_be_looked_at_is_named(project):
    name = "a" * 300
    done = project.run("diff", name, "config.yaml")
    assert (done.code, done.err) == (6, f"error: cannot use '{name}': File name too long\n")
