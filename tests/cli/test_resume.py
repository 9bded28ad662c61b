"""Runs that are stopped anywhere go on to the bits of a run that was not."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from quantcfg.cli.main import main
from quantcfg.errors import RunError
from quantcfg.runs import directory
from quantcfg.stages.signals import STOP_SIGNALS
from tests.cli.stopping import CALIB, QAT, STOPPABLE, stopped
from tests.run_files import contents


@pytest.fixture
def whole(stoppable):
    """The files of a qat run that nobody stopped."""
    assert stoppable.run(*QAT, "-o", "whole", "-q").code == 0
    return contents(stoppable.path / "whole")


# first step, middle and end of an epoch, the observer freeze after epoch 2, the last steps
@pytest.mark.parametrize("step", [1, 3, 6, 7, 12, 13, 17, 18])
def test_training_goes_on_to_the_same_bits(stoppable, monkeypatch, whole, step):
    done = stopped(stoppable, monkeypatch, f"loss:{step}:2", *QAT, "-o", "run")
    assert (done.code, done.err) == (
        130,
        f"error: stopped by SIGINT after step {step}, which is saved\n"
        "hint: resume with: quantcfg qat model.py config.yaml -o run -q --resume\n",
    )
    assert "result.json" not in stoppable.names("run")
    assert stoppable.run(*QAT, "-o", "run", "-q", "--resume").code == 0
    assert contents(stoppable.path / "run") == whole


def test_this_file_notices_random_generators_that_are_not_restored(stoppable, monkeypatch, whole):
    stopped(stoppable, monkeypatch, "loss:3:2", *QAT, "-o", "run")
    monkeypatch.setattr("quantcfg.stages.seeding.restore_random_state", lambda state: None)
    stoppable.run(*QAT, "-o", "run", "-q", "--resume")
    assert contents(stoppable.path / "run") != whole


def test_a_chain_of_stops_ends_in_the_same_bits(stoppable, monkeypatch, whole):
    for call in (4, 3, 2, 5):  # counted from each start
        assert stopped(stoppable, monkeypatch, f"loss:{call}:15", *QAT, "-o", "run", "--resume").code == 143
    assert stoppable.run(*QAT, "-o", "run", "--resume", "-q").code == 0
    assert contents(stoppable.path / "run") == whole


@pytest.fixture
def hangup():
    """Sets what a SIGHUP does, which nohup has the tests ignore, too."""
    before = signal.getsignal(signal.SIGHUP)
    yield partial(signal.signal, signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143), (1, 129), (10, 138)])
def test_every_stop_signal_saves_and_has_its_exit_code(stoppable, monkeypatch, hangup, number, code):
    hangup(signal.SIG_DFL)
    done = stopped(stoppable, monkeypatch, f"loss:4:{number}", *QAT, "-o", "run")
    assert done.code == code
    assert "checkpoints/4/manifest.json" in stoppable.names("run")


@pytest.mark.parametrize("batch", [1, 3])
def test_calibration_goes_on_to_the_same_bits(stoppable, monkeypatch, batch):
    assert stoppable.run(*CALIB, "-o", "whole", "-q").code == 0
    # the first call is the batch that the model is recorded on
    assert stopped(stoppable, monkeypatch, f"calib:{batch + 1}:2", *CALIB, "-o", "run").code == 130
    assert f"checkpoints/{batch}/manifest.json" in stoppable.names("run")
    assert stoppable.run(*CALIB, "-o", "run", "--resume", "-q").code == 0
    assert contents(stoppable.path / "run") == contents(stoppable.path / "whole")


@pytest.mark.parametrize("samples", [16, 12])
def test_a_calibration_stopped_after_its_last_sample_reads_no_more(stoppable, monkeypatch, samples):
    arguments = (*CALIB, "--set", "calib.batches=null", "--set", f"calib.samples={samples}")
    assert stoppable.run(*arguments, "-o", "whole", "-q").code == 0
    assert stopped(stoppable, monkeypatch, "calib:3:2", *arguments, "-o", "run").code == 130
    assert stoppable.run(*arguments, "-o", "run", "--resume", "-q").code == 0
    assert contents(stoppable.path / "run") == contents(stoppable.path / "whole")


def test_a_qat_run_stopped_while_it_calibrates_goes_on(stoppable, monkeypatch, whole):
    assert stopped(stoppable, monkeypatch, "calib:3:2", *QAT, "-o", "run").code == 130
    assert stoppable.run(*QAT, "-o", "run", "--resume", "-q").code == 0
    assert contents(stoppable.path / "run") == whole


@pytest.mark.parametrize("stop", ["calib:3:9", "loss:3:9", "loss:9:9"])
def test_a_killed_run_leaves_no_torn_file_and_goes_on_to_the_same_bits(stoppable, whole, stop):
    command = [sys.executable, "-m", "quantcfg", *QAT, "-o", "run", "-q", "--resume"]
    environment = os.environ | {"STOP": stop, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    for path in (stoppable.path / "run").rglob("*.json"):
        if ".tmp-" not in str(path):
            json.loads(path.read_text())

    assert stoppable.run(*QAT, "-o", "run", "--resume", "-q").code == 0
    assert contents(stoppable.path / "run") == whole


def test_a_damaged_checkpoint_is_passed_over_aloud(stoppable, monkeypatch, whole):
    stopped(stoppable, monkeypatch, "loss:8:2", *QAT, "-o", "run")
    (stoppable.path / "run/checkpoints/8/model.safetensors").write_bytes(b"")
    done = stoppable.run(*QAT, "-o", "run", "--resume")

    assert done.code == 0
    assert done.err.splitlines()[:2] == [
        "note: skipped a checkpoint: 'run/checkpoints/8' does not match its manifest: "
        f"'model.safetensors' has 0 bytes instead of {len(whole['checkpoints/18/model.safetensors'])}",
        "note: going on from step 6 of 'run'",
    ]
    assert contents(stoppable.path / "run") == whole


@pytest.mark.parametrize("name", ["metrics.jsonl", "plan.json", "config/input.yaml", "config/resolved.yaml"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b'{"step": 9, "lo')])
def test_what_is_damaged_beside_the_checkpoints_is_made_again(stoppable, monkeypatch, whole, name, damage):
    stopped(stoppable, monkeypatch, "loss:8:2", *QAT, "-o", "run")
    damage(stoppable.path / "run" / name)
    assert stoppable.run(*QAT, "-o", "run", "-q", "--resume").code == 0
    assert contents(stoppable.path / "run") == whole


def test_a_named_checkpoint_is_gone_on_with(stoppable, monkeypatch, whole):
    stopped(stoppable, monkeypatch, "loss:8:2", *QAT, "-o", "run")
    done = stoppable.run(*QAT, "-o", "run", "--checkpoint", "run/checkpoints/6")
    assert (done.code, done.err.splitlines()[0]) == (0, "note: going on from step 6 of 'run'")
    assert contents(stoppable.path / "run") == whole


def test_a_forced_run_is_not_begun_again_by_the_command_that_resumes(stoppable, monkeypatch, whole):
    shutil.copytree(stoppable.path / "whole", stoppable.path / "run")
    done = stopped(stoppable, monkeypatch, "loss:8:2", *QAT, "--force", "-o", "run")
    assert done.err.endswith("hint: resume with: quantcfg qat model.py config.yaml -o run -q --resume\n")
    assert stoppable.run(*QAT, "-o", "run", "-q", "--resume").code == 0
    assert contents(stoppable.path / "run") == whole


@pytest.mark.parametrize("way", [("--checkpoint", "run/checkpoints/6"), ("--checkpoint=run/checkpoints/6",)])
def test_a_stop_after_a_named_checkpoint_goes_on_from_the_newest(stoppable, monkeypatch, whole, way):
    stopped(stoppable, monkeypatch, "loss:8:2", *QAT, "-o", "run")
    done = stopped(stoppable, monkeypatch, "loss:4:2", *QAT, "-o", "run", *way)
    assert done.err.endswith("hint: resume with: quantcfg qat model.py config.yaml -o run -q --resume\n")
    assert "checkpoints/10/manifest.json" in stoppable.names("run")
    assert stoppable.run(*QAT, "-o", "run", "-q", "--resume").code == 0
    assert contents(stoppable.path / "run") == whole


def test_a_named_checkpoint_that_is_damaged_is_an_error(stoppable, monkeypatch):
    stopped(stoppable, monkeypatch, "loss:8:2", *QAT, "-o", "run")
    (stoppable.path / "run/checkpoints/8/state.json").write_text("{}")
    before = contents(stoppable.path / "run")
    done = stoppable.run(*QAT, "-o", "run", "-q", "--checkpoint", "run/checkpoints/8")
    assert done.code == 6
    assert done.err.startswith(
        "error: 'run/checkpoints/8' does not match its manifest: 'state.json' has 2 bytes"
    )
    assert contents(stoppable.path / "run") == before


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("run/checkpoints/7", "error: there is no checkpoint 'run/checkpoints/7'\n"
                              "hint: those of the run: 6, 8\n"),
        ("other/checkpoints/8", "error: 'other/checkpoints/8' is no checkpoint of the run 'run'\n"
                                "hint: -o names the run, and --checkpoint one of 'run/checkpoints'\n"),
    ],
)  # fmt: skip
def test_a_named_checkpoint_must_be_one_of_the_run(stoppable, monkeypatch, named, said):
    stopped(stoppable, monkeypatch, "loss:8:2", *QAT, "-o", "run")
    done = stoppable.run(*QAT, "-o", "run", "-q", "--checkpoint", named)
    assert (done.code, done.err) == (2, said)


def test_a_damaged_checkpoint_does_not_push_out_good_ones(stoppable, monkeypatch):
    stopped(stoppable, monkeypatch, "loss:14:2", *QAT, "-o", "run")
    (stoppable.path / "run/checkpoints/14/state.json").write_text("{}")
    stopped(stoppable, monkeypatch, "loss:1:2", *QAT, "-o", "run", "--resume")
    steps = sorted(int(path.name) for path in (stoppable.path / "run/checkpoints").iterdir())
    assert steps == [12, 13]


def test_the_command_that_is_printed_resumes(stoppable, monkeypatch):
    done = stopped(stoppable, monkeypatch, "loss:2:2", *QAT, "-o", "a run")
    command = shlex.split(done.err.splitlines()[-1].removeprefix("hint: resume with: "))
    assert command[0] == "quantcfg"
    assert main(command[1:]) == 0


def test_an_unfinished_run_is_not_overwritten_without_a_word(stoppable, monkeypatch):
    stopped(stoppable, monkeypatch, "loss:2:2", *QAT, "-o", "run")
    assert stoppable.run(*QAT, "-o", "run", "-q").err == (
        "error: 'run' holds an unfinished run\n"
        "hint: --resume goes on with it, --force starts again; -o names another directory\n"
    )
    assert stoppable.run(*QAT, "-o", "run", "-q", "--force").code == 0


def test_resuming_a_finished_run_says_so_and_changes_nothing(stoppable, whole):
    done = stoppable.run(*QAT, "-o", "whole", "--resume")
    assert (done.code, done.err) == (0, "note: the run in 'whole' is already finished\n")
    assert contents(stoppable.path / "whole") == whole


def test_resuming_nothing_says_so_and_starts(stoppable):
    done = stoppable.run(*CALIB, "-o", "run", "--resume")
    assert done.code == 0
    assert done.err.splitlines()[0] == "note: nothing to resume in 'run': starting from the beginning"


def test_force_starts_again_whatever_is_there(stoppable, whole):
    shutil.copytree(stoppable.path / "whole", stoppable.path / "run")
    assert stoppable.run(*QAT, "-o", "run", "-q", "--force", "--set", "qat.epochs=1").code == 0
    assert "checkpoints/6/state.json" in stoppable.names("run")
    assert "checkpoints/18/state.json" not in stoppable.names("run")


@pytest.mark.parametrize("removed", [0, 1, 2])  # folders
def test_a_forced_run_that_is_lost_while_it_replaces_another_leaves_nothing_to_mistake(
    stoppable, monkeypatch, whole, removed
):
    shutil.copytree(stoppable.path / "whole", stoppable.path / "run")
    left = [True] * removed
    remove = directory.remove_directory

    def lost(path):
        if not left:
            raise RunError("lost")
        left.pop()
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(directory, "remove_directory", lost)
        assert stoppable.run(*QAT, "-o", "run", "-q", "--force").code == 6
    assert stoppable.run(*QAT, "-o", "run", "-q", "--resume").code == 0
    assert contents(stoppable.path / "run") == whole


@pytest.mark.parametrize(
    ("arguments", "stop", "saved"), [(QAT, "loss:9:-1", "8"), (CALIB, "calib:4:-1", "2")]
)
def test_a_run_that_saves_between_steps_loses_one_step_at_most(
    stoppable, monkeypatch, arguments, stop, saved
):
    stoppable.model(STOPPABLE.replace("os.kill(os.getpid(), int(number))", "raise ValueError('here')"))
    assert stoppable.run(*arguments, "-o", "whole", "-q").code == 0
    monkeypatch.setattr("quantcfg.stages.clock.SAVE_INTERVAL_S", 0.0)

    assert stopped(stoppable, monkeypatch, stop, *arguments, "-o", "run").code == 5
    assert f"checkpoints/{saved}/manifest.json" in stoppable.names("run")
    assert stoppable.run(*arguments, "-o", "run", "-q", "--resume").code == 0
    assert contents(stoppable.path / "run") == contents(stoppable.path / "whole")


def test_an_interrupt_outside_the_steps_says_so(stoppable):
    stoppable.model(STOPPABLE + "\ndef build_model():\n    raise KeyboardInterrupt\n")
    done = stoppable.run(*CALIB, "-o", "run", "-q")
    assert (done.code, done.err) == (130, "error: interrupted\n")
    assert stoppable.names("run") == []


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143), (10, 138)])
@pytest.mark.parametrize("place", ["", "def build_model():\n    ", "def evaluate(model, batches):\n    "])
def test_a_signal_outside_the_steps_says_how_to_go_on(stoppable, place, number, code):
    stoppable.model(STOPPABLE + f"\n{place}os.kill(os.getpid(), {number})\n")
    handlers = [signal.getsignal(each) for each in STOP_SIGNALS]
    done = stoppable.run(*CALIB, "-o", "run", "-q")
    assert (done.code, done.err) == (
        code,
        f"error: stopped by {signal.Signals(number).name}\n"
        "hint: resume with: quantcfg calib model.py config.yaml -o run -q --resume\n",
    )
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == handlers


def test_a_second_signal_does_not_wait_for_the_step(stoppable, monkeypatch):
    again = "os.kill(os.getpid(), int(number))"
    stoppable.model(STOPPABLE.replace(again, f"{again}; {again}; raise AssertionError"))
    done = stopped(stoppable, monkeypatch, "loss:3:15", *QAT, "-o", "run")
    assert (done.code, done.err.splitlines()[0]) == (143, "error: stopped by SIGTERM")
    assert stoppable.run(*QAT, "-o", "run", "-q", "--resume").code == 0


def test_a_calibration_is_not_lost_when_its_evaluation_is_stopped(stoppable, monkeypatch):
    assert stoppable.run(*CALIB, "-o", "whole", "-q").code == 0
    odd = "\ncalls['evals'] = 0\ndef eval_data():\n    yield from DataLoader(dataset(3), batch_size=16)\n"
    stoppable.model(STOPPABLE + odd + "    stop_at('evals')\n")
    assert stopped(stoppable, monkeypatch, "evals:2:15", *CALIB, "-o", "run").code == 143
    assert "checkpoints/4/manifest.json" in stoppable.names("run")
    stoppable.model(STOPPABLE)
    assert stoppable.run(*CALIB, "-o", "run", "-q", "--resume").code == 0
    assert contents(stoppable.path / "run") == contents(stoppable.path / "whole")


def test_a_signal_while_ranges_are_solved_is_obeyed_when_they_are_saved(stoppable, monkeypatch):
    assert stoppable.run(*CALIB, "-o", "whole", "-q").code == 0
    with monkeypatch.context() as patch:
        patch.setattr("quantcfg.stages.calib.require_agreement", lambda *_: signal.raise_signal(15))
        done = stoppable.run(*CALIB, "-o", "run", "-q")
    assert (done.code, done.err) == (
        143,
        "error: stopped by SIGTERM\n"
        "hint: resume with: quantcfg calib model.py config.yaml -o run -q --resume\n",
    )
    assert "checkpoints/4/manifest.json" in stoppable.names("run")
    assert stoppable.run(*CALIB, "-o", "run", "-q", "--resume").code == 0
    assert contents(stoppable.path / "run") == contents(stoppable.path / "whole")


def test_children_that_a_step_starts_can_be_terminated(stoppable):
    more = """
import signal
def loss(outputs, batch):
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # in which Python comes to run a handler
            pass
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    return F.cross_entropy(outputs, batch[1])
"""
    stoppable.model(STOPPABLE + more)
    assert stoppable.run(*QAT, "-o", "run", "-q", "--set", "qat.epochs=1").code == 0


def test_a_run_under_nohup_outlives_its_terminal(stoppable, monkeypatch, hangup):
    hangup(signal.SIG_IGN)
    assert stopped(stoppable, monkeypatch, "calib:2:1", *CALIB, "-o", "run").code == 0


def test_workers_and_their_augmentations_are_gone_on_with(stoppable, monkeypatch):
    stoppable.model(
        STOPPABLE
        + """
class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 44
    def __getitem__(self, index):
        x, y = dataset(2)[index]
        return x + torch.rand(1) * random.random() * np.random.rand(), y

def train_data():
    return DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=2)
"""
    )
    assert stoppable.run(*QAT, "-o", "whole", "-q").code == 0
    assert stopped(stoppable, monkeypatch, "loss:9:2", *QAT, "-o", "run").code == 130
    assert stoppable.run(*QAT, "-o", "run", "-q", "--resume").code == 0
    assert contents(stoppable.path / "run") == contents(stoppable.path / "whole")
