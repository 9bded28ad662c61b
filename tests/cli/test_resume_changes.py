"""A run is gone on with as it was begun: every change is refused by name, or noted where bits may bear it."""

import json
import re
import shutil

import pytest

from quantcfg.stages import identity
from tests.cli.conftest import CONFIG, MODEL
from tests.cli.stopping import CALIB, QAT, STOPPABLE, stopped
from tests.run_files import contents

HINT = "--force starts again; -o names another directory\n"
SAME_DATA = f"hint: give it the data that it was begun with; {HINT}"


@pytest.fixture
def stopped_at(project, monkeypatch):
    """Leaves a run that was stopped, of the model file given, and says what resuming it came to."""

    def stop(where, *command, model=""):
        project.model(STOPPABLE + model)
        done = stopped(project, monkeypatch, f"{where}:2", *command, "-o", "run")
        assert done.code == 130, done.err

    return stop


def resumed(project, *command, model=""):
    project.model(STOPPABLE + model)
    before = contents(project.path / "run")
    done = project.run(*command, "-o", "run", "-q", "--resume")
    if done.code == 2:
        assert contents(project.path / "run") == before
    return done.code, done.err


def refused(what):
    return 2, f"error: 'run' was begun with another {what}"


@pytest.mark.parametrize("model", ["", "\ndef build_model():\n    return Net()\n"], ids=["fixed", "drawn"])
def test_another_seed_is_named(project, stopped_at, model):
    stopped_at("loss:2", *QAT, model=model)
    said = refused(f"seed: the seed was 0 and is 5\nhint: --seed 0 goes on with it; {HINT}")
    assert resumed(project, *QAT, "--seed", "5", model=model) == said


def test_fields_of_another_config_are_named_with_their_places(project, stopped_at):
    stopped_at("loss:2", *QAT)
    text = (project.path / "config.yaml").read_text()
    project.write("config.yaml", text.replace("lr: 0.05, momentum: 0.9", "lr: 0.1") + "  ema: 0.9\n")
    assert resumed(project, *QAT, "--set", "qat.epochs=4", "--set", "calib.batches=3") == refused(
        "config: calib.batches was 4 and is 3 (--set), qat.epochs was 3 and is 4 (--set), "
        "qat.optimizer.lr was 0.05 and is 0.1 (config.yaml:8) and 2 more\n"
        f"hint: quantcfg diff run config.yaml compares the files; {HINT}"
    )


def test_fields_that_come_and_go_are_named(project, stopped_at):
    stopped_at("loss:2", *QAT, "--set", "qat.ema=0.9")
    assert resumed(project, *QAT, "--set", "qat.grad_clip=1") == refused(
        "config: qat.grad_clip was not there and is 1 (--set), qat.ema was 0.9 and is not there\n"
        f"hint: quantcfg diff run config.yaml compares the files; {HINT}"
    )


def test_a_run_without_a_checkpoint_keeps_its_config_and_seed(project, stopped_at):
    stopped_at("loss:1", *QAT)
    shutil.rmtree(project.path / "run/checkpoints")
    assert resumed(project, *QAT, "--set", "qat.epochs=4", "--seed", "1") == refused(
        "seed and config: the seed was 0 and is 1; qat.epochs was 3 and is 4 (--set)\n"
        f"hint: --seed 0 goes on with it; quantcfg diff run config.yaml compares the files; {HINT}"
    )
    other = "\ndef build_model():\n    torch.manual_seed(1)\n    return Net()\n"
    assert resumed(project, *QAT, model=other)[1].startswith("error: 'run' was begun with another model")
    assert resumed(project, *CALIB)[1] == refused(f"stage: qat, not calib\nhint: {HINT}")[1]
    assert resumed(project, *QAT)[0] == 0


@pytest.mark.parametrize(
    ("built", "how"),
    [
        ("Net()", "its float weights have other values"),
        (
            "nn.Sequential(Net())",
            "'0.conv.weight' was not there and is float32 (4, 1, 3, 3), "
            "'0.conv.bias' was not there and is float32 (4,), "
            "'0.classifier.weight' was not there and is float32 (3, 4) and 5 more",
        ),
        (
            "Net()\n    model.classifier = nn.Linear(4, 9)\n    return model",
            "'classifier.weight' was float32 (3, 4) and is float32 (9, 4), "
            "'classifier.bias' was float32 (3,) and is float32 (9,)",
        ),
    ],
)
def test_another_model_is_named_by_what_differs(project, stopped_at, built, how):
    stopped_at("loss:2", *QAT)
    model = f"\ndef build_model():\n    torch.manual_seed(1)\n    model = {built}\n    return model\n"
    assert resumed(project, *QAT, model=model) == refused(f"model: {how}\nhint: {HINT}")


def test_a_run_of_another_stage_is_left_alone(project, stopped_at):
    stopped_at("calib:3", *CALIB)
    assert resumed(project, *QAT) == refused(f"stage: calib, not qat\nhint: {HINT}")
    assert resumed(project, *CALIB)[0] == 0
    assert resumed(project, *QAT) == refused(f"stage: calib, not qat\nhint: {HINT}")


def test_a_finished_run_is_held_against_the_command_too(project):
    assert project.run(*CALIB, "-o", "run", "-q").code == 0
    assert resumed(project, *CALIB, "--seed", "5")[0] == 2
    assert resumed(project, *CALIB, "--set", "calib.batches=3") == refused(
        "config: calib.batches was 4 and is 3 (--set)\n"
        f"hint: quantcfg diff run config.yaml compares the files; {HINT}"
    )


def test_another_calibration_to_start_from_is_noticed(project, stopped_at):
    project.model(STOPPABLE)
    for name, seed in (("a", "0"), ("b", "1")):
        assert project.run(*CALIB, "-o", name, "-q", "--seed", seed).code == 0
    stopped_at("loss:2", *QAT, "--from", "a")
    for more, how in (
        (("--from", "b"), "--from names another one than it did"),
        ((), "--from was given and is not"),
    ):
        assert resumed(project, *QAT, *more) == refused(f"calibration: {how}\nhint: {HINT}")
    assert resumed(project, *QAT, "--from", "a")[0] == 0


def loader(seed=2, size=44, batch=8, more=""):
    loading = f"DataLoader(dataset({seed}, {size}), batch_size={batch}, shuffle=True{more})"
    return f"\ndef train_data():\n    return {loading}\n"


def stream(size=44):
    return f"\ndef train_data():\n    yield from DataLoader(dataset(2, {size}), batch_size=8)\n"


@pytest.fixture
def constant_rate(project):
    """A config that asks for no length of the data."""
    project.write("config.yaml", CONFIG.replace("  scheduler: {name: cosine}\n", ""))


FIRST = "the SHA-256 of the first batch of train_data\\(\\) was ............ and is ............"


@pytest.mark.parametrize(
    ("change", "how"),
    [
        ({"size": 36}, r"the number of batches of train_data\(\) was 6 and is 5"),
        ({"batch": 4}, r"the number of batches of train_data\(\) was 6 and is 11"),
        ({"seed": 7}, FIRST),
        ({"size": 45}, FIRST),  # as many batches, in another order
    ],
)
@pytest.mark.parametrize("step", [2, 6])  # in the first epoch, and at its end
def test_other_data_is_noticed(project, stopped_at, step, change, how):
    stopped_at(f"loss:{step}", *QAT)
    code, said = resumed(project, *QAT, model=loader(**change))
    assert code == 2
    assert re.fullmatch(f"error: 'run' was begun with another train_data\\(\\): {how}\n{SAME_DATA}", said)


def test_other_data_to_calibrate_and_to_evaluate_on_is_noticed(project, stopped_at):
    stopped_at("calib:3", *CALIB)
    other = "\ndef calib_data():\n    yield from DataLoader(dataset(5), batch_size=8)\n"
    assert resumed(project, *CALIB, model=other)[1].startswith(
        "error: 'run' was begun with another calib_data(): the SHA-256 of the first batch of calib_data() "
    )
    other = "\ndef eval_data():\n    return DataLoader(dataset(3), batch_size=8)\n"
    assert resumed(project, *CALIB, model=other) == refused(
        f"eval_data(): the number of batches of eval_data() was 3 and is 6\n{SAME_DATA}"
    )
    assert resumed(project, *CALIB, model="\ndel eval_data\n") == refused(
        f"eval_data(): eval_data() was there and is not\nhint: {HINT}"
    )


@pytest.mark.usefixtures("constant_rate")
@pytest.mark.parametrize("step", [4, 9])
def test_data_without_a_length_is_noticed_to_end_early(project, stopped_at, step):
    stopped_at(f"loss:{step}", *QAT, model=stream())
    project.model(STOPPABLE + stream(size=20))  # the same first batch
    done = project.run(*QAT, "-o", "run", "-q", "--resume")
    how = {
        4: "ended after 3 batches: 4 were read before the run was stopped",
        9: "had 6 batches in pass 1 before the run was stopped, and has 3 now",
    }[step]
    line = len((MODEL + STOPPABLE).splitlines()) + 2
    assert (done.code, done.err) == (
        5,
        f"error: model.py:{line}: train_data() {how}\n"
        "hint: go on with the data that the run was begun with; --force starts again\n",
    )


@pytest.mark.usefixtures("constant_rate")
def test_passes_may_differ_in_length(project, stopped_at):
    uneven = """
def train_data():
    yield from DataLoader(dataset(2, random.randint(20, 48)), batch_size=8)
"""
    project.model(STOPPABLE + uneven)
    assert project.run(*QAT, "-o", "whole", "-q").code == 0
    lengths = {}
    for line in (project.path / "whole/metrics.jsonl").read_text().splitlines():
        lengths[json.loads(line)["epoch"]] = json.loads(line)["step"]
    first, second, third = lengths.values()
    assert len({first, second - first, third - second}) > 1
    stopped_at(f"loss:{first + 1}", *QAT, model=uneven)
    assert resumed(project, *QAT, model=uneven) == (0, "")
    assert contents(project.path / "run") == contents(project.path / "whole")


@pytest.mark.usefixtures("constant_rate")
def test_a_stream_may_become_a_loader_of_the_same_batches(project, stopped_at):
    stopped_at("loss:7", *QAT, model=stream())
    same = "\ndef train_data():\n    return DataLoader(dataset(2), batch_size=8)\n"
    assert resumed(project, *QAT, model=same) == (0, "")


@pytest.mark.usefixtures("constant_rate")
def test_one_iterator_for_ever_is_gone_on_with(project, stopped_at):
    once = """
def example_inputs():
    return torch.rand(8, 1, 4, 4)
def numbers():
    for index in range(5):
        yield torch.rand(8, 1, 4, 4) + random.random(), torch.arange(8) % 3
ONCE = numbers()
def train_data():
    return ONCE
"""
    one_epoch = (*QAT, "--set", "qat.epochs=1")
    project.model(STOPPABLE + once)
    assert project.run(*one_epoch, "-o", "whole", "-q").code == 0
    stopped_at("loss:3", *one_epoch, model=once)
    assert resumed(project, *one_epoch, model=once) == (0, "")
    assert contents(project.path / "run") == contents(project.path / "whole")


def test_an_endless_stream_is_gone_on_with(project, stopped_at):
    endless = """
def train_data():
    while True:
        yield torch.rand(8, 1, 4, 4), torch.arange(8) % 3
"""
    project.write("config.yaml", CONFIG.replace("epochs: 3", "steps: 7"))
    project.model(STOPPABLE + endless)
    assert project.run(*QAT, "-o", "whole", "-q").code == 0
    stopped_at("loss:3", *QAT, model=endless)
    assert resumed(project, *QAT, model=endless) == (0, "")
    assert contents(project.path / "run") == contents(project.path / "whole")


@pytest.mark.usefixtures("constant_rate")
def test_data_that_no_seed_decides_is_gone_on_with_aloud(project, stopped_at):
    chance = """
def train_data():
    for _ in range(6):
        yield torch.frombuffer(bytearray(os.urandom(128)), dtype=torch.uint8).view(8, 1, 4, 4) / 255, \
            torch.arange(8) % 3
"""
    stopped_at("loss:3", *QAT, model=chance)
    done = project.run(*QAT, "-o", "run", "--resume")
    assert (done.code, done.err.splitlines()[:2]) == (0, [
        "note: train_data() gives other batches each time: the end is not that of a whole run",
        "note: going on from step 3 of 'run'",
    ])  # fmt: skip


def test_another_number_of_workers_is_refused(project, stopped_at):
    stopped_at("loss:3", *QAT, model=loader(more=", num_workers=1"))
    assert resumed(project, *QAT, model=loader(more=", num_workers=2")) == refused(
        "train_data(): num_workers of train_data() was 1 and is 2\n"
        "hint: num_workers=1 goes on with it: what workers draw depends on their number; " + HINT
    )


def test_what_bits_may_depend_on_is_noted(project, stopped_at, monkeypatch):
    stopped_at("loss:3", *QAT)
    now = identity.surroundings

    def elsewhere(job):
        return {**now(job), "threads": 64, "versions": {**now(job)["versions"], "torch": "9.9"}}

    monkeypatch.setattr(identity, "surroundings", elsewhere)
    torch_now = identity.versions()["torch"]
    done = project.run(*QAT, "-o", "run", "--resume")
    assert (done.code, done.err.splitlines()[:2]) == (0, [
        "note: going on from step 3 of 'run'",
        f"note: since that step torch was {torch_now} and is 9.9, threads was 1 and is 64: "
        "the last bits may come out otherwise",
    ])  # fmt: skip


def test_a_checkpoint_of_another_run_is_refused(project, stopped_at):
    stopped_at("loss:3", *QAT, "--seed", "1")
    (project.path / "run").rename(project.path / "other")
    stopped_at("loss:2", *QAT)
    shutil.copytree(project.path / "other/checkpoints/3", project.path / "run/checkpoints/3")
    code, said = resumed(project, *QAT)
    assert (code, said) == refused(f"seed: the seed was 1 and is 0\nhint: --seed 1 goes on with it; {HINT}")


def test_a_recalculation_is_gone_on_with_and_keeps_its_source(project, monkeypatch):
    project.model(STOPPABLE)
    again = (*CALIB, "--from", "counts")
    assert project.run(*CALIB, "-o", "counts", "-q").code == 0
    assert project.run(*again, "-o", "whole", "-q").code == 0
    stop = "\ncalls['evals'] = 0\ndef evaluate(model, batches):\n    stop_at('evals')\n    return {'n': 1}\n"
    project.model(STOPPABLE + stop)
    assert project.run(*again, "-o", "whole", "-q", "--force").code == 0
    assert stopped(project, monkeypatch, "evals:2:15", *again, "-o", "run").code == 143
    assert resumed(project, *CALIB, model=stop) == refused(
        f"calibration: --from was given and is not\nhint: {HINT}"
    )
    assert resumed(project, *again, model=stop) == (0, "")
    assert contents(project.path / "run") == contents(project.path / "whole")
