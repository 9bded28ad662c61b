"""``quantcfg qat --tensorboard``: the figures of metrics.jsonl, also after a run that failed and went on."""

import json
import sys

import pytest

FAILING = """
import os
import torch.nn.functional as F
calls = []

def loss(outputs, batch):
    calls.append(1)
    if len(calls) == int(os.environ.get("FAIL_AT", 0)):
        raise ValueError("now")
    return F.cross_entropy(outputs, batch[1])
"""
COMMAND = ("qat", "model.py", "config.yaml", "-o", "run", "-q", "--tensorboard")


@pytest.fixture
def failing(project, monkeypatch):
    """The project, whose loss raises at call number ``FAIL_AT``; scales are learned."""
    pytest.importorskip("tensorboard")
    project.model(FAILING)
    config = (project.path / "config.yaml").read_text()
    project.write("config.yaml", config.replace("global: {", "global: {weight_fake_quant: lsq, "))
    monkeypatch.delenv("FAIL_AT", raising=False)
    return project


def shown(project):
    """What TensorBoard shows of the run: ``{tag: [(step, value), ...]}``."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(project.path / "run" / "tensorboard")).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def measured(project):
    """The same of metrics.jsonl, in float32 as events hold it."""
    found = {}
    for line in (project.path / "run" / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        values = {f"evaluation/{name}": value for name, value in row.pop("evaluation", {}).items()}
        values |= {f"training/{name}": value for name, value in row.items() if name != "step"}
        for tag, value in values.items():
            found.setdefault(tag, []).append((row["step"], pytest.approx(value, rel=1e-6)))
    return found


def test_events_say_what_metrics_say_and_what_quantizers_learned(failing):
    assert failing.run(*COMMAND).code == 0
    events = shown(failing)
    learned = {tag: values for tag, values in events.items() if tag.startswith("quantizers/")}
    assert {tag: values for tag, values in events.items() if tag not in learned} == measured(failing)
    assert [step for step, _ in learned["quantizers/conv.weight.scale"]] == [6, 12, 18]


def test_a_resumed_run_shows_each_step_once(failing, monkeypatch):
    monkeypatch.setenv("FAIL_AT", "12")
    assert failing.run(*COMMAND).code == 5
    assert (10 in dict(shown(failing)["training/loss"])) and not failing.names("run/checkpoints/12")
    monkeypatch.delenv("FAIL_AT")
    assert failing.run(*COMMAND, "--resume").code == 0
    assert {tag: values for tag, values in shown(failing).items() if "quantizers" not in tag} == measured(
        failing
    )
    assert len(failing.names("run/tensorboard")) == 2
    assert failing.run("eval", "model.py", "run", "-q").code == 0  # the manifest holds the events, too


def test_events_that_cannot_be_written_do_not_end_the_run(failing, monkeypatch):
    monkeypatch.setenv("FAIL_AT", "12")
    assert failing.run(*COMMAND).code == 5
    monkeypatch.delenv("FAIL_AT")
    folder = failing.path / "run" / "tensorboard"
    folder.rename(failing.path / "elsewhere")
    folder.symlink_to("nowhere")
    done = failing.run(*(word for word in COMMAND if word != "-q"), "--resume")
    assert done.code == 0
    assert done.err.count("note: TensorBoard gets no more events: cannot write '") == 1


@pytest.mark.parametrize("absent", ["tensorboard", "absl"])
def test_without_the_package_it_is_one_error_before_anything_runs(project, monkeypatch, absent):
    for name in [name for name in sys.modules if name.split(".")[0] in ("tensorboard", absent)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    done = project.run(*COMMAND)
    assert done.code == 2
    assert done.err.startswith("error: --tensorboard needs the package tensorboard: ")
    assert done.err.endswith("\nhint: pip install 'quantcfg[tensorboard]'\n")
    assert not (project.path / "run").exists()
