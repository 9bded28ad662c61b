"""What the qat section of a config does to a training, and that all of it survives a stop."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.stopping import QAT, STOPPABLE, stopped
from tests.run_files import contents

EVERYTHING = """
version: 1
qconfig: {global: w8a8_lsq}
calib: {batches: 2}
qat:
  epochs: 3
  accumulate: 4
  optimizer: {name: AdamW, lr: 0.01, quantizer_lr: 0.001, quantizer_weight_decay: 0.01}
  scheduler: {name: onecycle, max_lr: 0.02}
  schedule: {quantize_activations_after: 1, freeze_observers_after: 2}
  autocast: bfloat16
  ema: 0.75
  distill: {weight: 0.5, temperature: 3}
  eval_every: 1
  best: {metric: loss, mode: min}
"""
LOSS_AS_METRIC = """
def evaluate(model, data):
    losses = [F.cross_entropy(model(x), y).item() for x, y in data]
    return {"loss": sum(losses) / len(losses)}
"""
SCORES = """
calls = []

def evaluate(model, data):
    assert model(next(iter(data))[0]).dtype == torch.float32
    calls.append(1)
    return {"score": SCORES[len(calls) - 1]}
"""
STEEP = """
import torch.nn.functional as F

def loss(outputs, batch):
    assert outputs.dtype == torch.float16
    return F.cross_entropy(outputs.float(), batch[1]) * 3000

def evaluate(model, data):
    assert all(model(x).dtype == torch.float32 for x, _ in data)
    return {"score": 1}
"""
ALWAYS_STEEP = """
class Steep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")

class Net(Net):
    def forward(self, x):
        return self.classifier(Steep.apply(torch.relu(self.conv(x)).mean((2, 3))))
"""


def result(project, run="run"):
    return json.loads((project.path / run / "result.json").read_text())


def model_of(project, run):
    return load_file(project.path / run / result(project, run)["checkpoint"] / "model.safetensors")


def checkpoints(project):
    return {int(path.name) for path in (project.path / "run/checkpoints").iterdir()}


def train(project, run, *settings):
    """Train with settings of the qat section; the tensors of the model that is kept."""
    options = [part for setting in settings for part in ("--set", f"qat.{setting}")]
    done = project.run(*QAT, "-o", run, "-q", *options)
    assert done.code == 0, done.err
    return model_of(project, run)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def everything(stoppable):
    """Every feature at once; six batches an epoch, so that its last step has only two."""
    source = (stoppable.path / "model.py").read_text()
    stoppable.write("model.py", source + LOSS_AS_METRIC)
    stoppable.write("config.yaml", EVERYTHING)
    assert stoppable.run(*QAT, "-o", "whole", "-q").code == 0
    return stoppable


# within the first step, at its end, in the short step of an epoch, where activations begin, at the end
@pytest.mark.parametrize("call", [2, 4, 6, 8, 14, 17])
def test_all_of_it_goes_on_to_the_same_bits(everything, monkeypatch, call):
    assert stopped(everything, monkeypatch, f"loss:{call}:2", *QAT, "-o", "run").code == 130
    assert everything.run(*QAT, "-o", "run", "-q", "--resume").code == 0
    assert contents(everything.path / "run") == contents(everything.path / "whole")


def test_a_crash_within_a_step_goes_on_to_the_same_bits(everything, monkeypatch):
    source = (everything.path / "model.py").read_text()
    everything.write("model.py", source.replace("os.kill(os.getpid(), int(number))", "raise ValueError"))
    assert stopped(everything, monkeypatch, "loss:11:-1", *QAT, "-o", "run").code == 5
    assert everything.run(*QAT, "-o", "run", "-q", "--resume").code == 0
    assert contents(everything.path / "run") == contents(everything.path / "whole")


def test_the_kept_model_of_all_of_it_is_what_eval_evaluates(everything):
    done = everything.run("eval", "model.py", "whole", "--format", "json", "-q")
    assert json.loads(done.out)["result"]["metrics"]["qat"] == result(everything, "whole")["metrics"]["qat"]


def test_accumulated_batches_make_the_step_of_one_large_batch(project):
    plain = """
    def build_model():
        torch.manual_seed(0)
        return Net().requires_grad_(True)
    class Net(Net):
        def __init__(self):
            super().__init__()
            self.drop = nn.Identity()
    def train_data():
        return DataLoader(dataset(2, 48), batch_size={size})
    """
    same = ("schedule.freeze_observers_after=0", "epochs=2")
    project.model(plain.replace("{size}", "16"))
    large = train(project, "large", *same)
    project.model(plain.replace("{size}", "4"))
    small = train(project, "small", *same, "accumulate=4")
    assert result(project, "small")["num_steps"] == result(project, "large")["num_steps"] == 6
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=1e-5, atol=1e-6)
    assert not equal(train(project, "other", *same, "accumulate=2"), large)


def test_the_last_step_of_an_epoch_takes_the_batches_that_are_left(project):
    train(project, "run", "accumulate=4")
    rows = [json.loads(line) for line in (project.path / "run/metrics.jsonl").read_text().splitlines()]
    assert (result(project)["num_steps"], result(project)["num_epochs"]) == (6, 3)
    assert [row["step"] for row in rows if "evaluation" in row] == [2, 4, 6]


def test_evaluating_more_often_changes_no_weight(project):
    quiet = train(project, "quiet")
    often = train(project, "often", "eval_every=4")
    rows = [json.loads(line) for line in (project.path / "often/metrics.jsonl").read_text().splitlines()]
    found = [(row["step"], row["epoch"]) for row in rows if "evaluation" in row]
    assert found == [(4, 1), (6, 1), (8, 2), (12, 2), (16, 3), (18, 3)]
    assert equal(quiet, often)


def scored(project, scores, *settings):
    """Train with these metrics, of the float, the calibrated and then the trained models."""
    source = SCORES.replace("SCORES[", f"{scores}[")
    project.model(source)
    return train(project, "run", "epochs=6", *settings)


@pytest.mark.parametrize(
    ("mode", "scores", "best_step"),
    [("max", [1, 1, 0.3, 0.5, 0.4, 0.5, 0.1, 0.2], 12), ("min", [1, 1, 0.3, 0.5, 0.2, 0.5, 0.2, 0.9], 18)],
)
def test_the_best_model_is_kept_beside_the_last(project, mode, scores, best_step):
    kept = scored(project, scores, f"best={{metric: score, mode: {mode}}}")
    run = result(project)
    assert (run["best_step"], run["num_steps"], run["checkpoint"]) == (
        best_step,
        36,
        f"checkpoints/{best_step}",
    )
    assert run["metrics"]["qat"] == {"score": scores[1 + best_step // 6]}
    assert checkpoints(project) == {best_step, 36}
    last = load_file(project.path / "run/checkpoints/36/model.safetensors")
    assert not equal(kept, last)


@pytest.mark.parametrize(
    ("settings", "scores", "last"),
    [
        ((), [0, 0, 0.1, 0.4, 0.3, 0.2, 0.9, 0.9], 24),
        (("eval_every=4",), [0, 0, 0.4, 0.3, 0.2, 0.9], 8),  # 4, 6, 8: within the second epoch
    ],
)
def test_training_stops_when_nothing_better_comes(project, settings, scores, last):
    scored(project, scores, "best={metric: score, patience: 2}", *settings)
    assert result(project)["num_steps"] == last
    assert last in checkpoints(project)


def test_a_metric_that_is_nan_is_never_the_best(project):
    scored(project, "[1, 1, float('nan'), .2, .1, float('nan'), .1, .1]", "best={metric: score}")
    assert result(project)["best_step"] == 12


def test_a_result_with_a_metric_that_is_nan_is_refused(project):
    project.model("""
        calls = []
        def evaluate(model, data):
            calls.append(model)
            return {"score": 1.0 if len(calls) < 3 else float("nan")}
    """)
    done = project.run(*QAT, "-o", "run", "-q", "--set", "qat.epochs=1")
    assert (done.code, done.out, done.err) == (
        6,
        "",
        "error: 'score' of the trained model is nan\n"
        "hint: look for NaN or inf in weights, outputs and data; leave out a metric without bounds\n",
    )


def test_a_metric_that_has_become_nan_is_refused_by_eval(project):
    assert project.run("calib", "model.py", "config.yaml", "-o", "run", "-q").code == 0
    project.model("""
        def evaluate(model, data):
            return {"score": float("inf")}
    """)
    done = project.run("eval", "model.py", "run", "-q")
    assert (done.code, done.out, done.err) == (
        6,
        "",
        "error: 'score' of the float model is inf\n"
        "hint: look for NaN or inf in weights, outputs and data; leave out a metric without bounds\n",
    )


def test_a_metric_that_does_not_exist_is_refused_before_training(project):
    done = project.run(*QAT, "-o", "run", "-q", "--set", "qat.best={metric: acuracy}")
    assert (done.code, done.err) == (
        2,
        "error: qat.best.metric is 'acuracy'; the metrics are 'accuracy'\n",
    )


def test_autocast_trains_in_bfloat16_and_evaluates_in_float32(project):
    project.model(
        """
        import torch.nn.functional as F
        def loss(outputs, batch):
            assert outputs.dtype == torch.bfloat16
            return F.cross_entropy(outputs.float(), batch[1])
        def evaluate(model, data):
            assert all(model(x).dtype == torch.float32 for x, _ in data)
            return {"score": 1}
        """
    )
    weights = train(project, "run", "autocast=bfloat16")
    assert weights["conv.weight"].dtype == torch.float32


def test_a_gradient_that_overflows_float16_is_skipped_and_scaled_less(project):
    project.model(STEEP)
    done = project.run(*QAT, "-o", "run", "--set", "qat.autocast=float16", "--set", "qat.grad_clip=0.1")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (project.path / "run/metrics.jsonl").read_text().splitlines()]
    scales = [row["loss_scale"] for row in rows if "loss_scale" in row]
    skipped = result(project)["num_skipped_steps"]
    assert 1 <= skipped < 18
    assert scales[-1] == 65536 / 2**skipped
    assert result(project)["num_steps"] == 18
    assert model_of(project, "run")["conv.weight"].dtype == torch.float32
    assert f"skipped   {skipped} steps whose gradient overflowed float16\n" in done.out


def test_a_skipped_step_changes_nothing(project):
    project.model(STEEP)
    project.write("config.yaml", (project.path / "config.yaml").read_text().replace("epochs: 3", "steps: 1"))
    skipped = train(project, "one", "autocast=float16", "ema=0.5")
    assert result(project, "one")["num_skipped_steps"] == 1
    project.model()
    start = train(project, "start", "optimizer={name: SGD, lr: 1e-30}")
    assert torch.equal(skipped["conv.weight"], start["conv.weight"])


def test_a_gradient_that_overflows_at_every_scale_ends_the_run(project):
    project.model(ALWAYS_STEEP)
    done = project.run(*QAT, "-o", "run", "-q", "--set", "qat.autocast=float16", "--set", "qat.epochs=9")
    assert (done.code, done.err) == (
        6,
        "error: the gradient of 'conv.weight' is not finite in 31 steps up to 31 (epoch 6, batch 0); "
        "nothing was updated\n"
        "hint: a smaller learning rate, or qat.grad_clip, keeps training finite\n",
    )
    assert not [step for step in checkpoints(project) if step > 30]


def test_float16_parameters_are_refused(project):
    project.model(
        """
        class Net(Net):
            def __init__(self):
                super().__init__()
                self.gain = nn.Parameter(torch.ones(3).half())
        """
    )
    done = project.run(*QAT, "-o", "run", "-q", "--set", "qat.autocast=float16")
    assert (done.code, done.err) == (
        2,
        "error: qat.autocast: float16 is for parameters in float32, and 'gain' is in float16\n"
        "hint: build the model in float32; autocast casts what is to be cast\n",
    )


@pytest.mark.parametrize("call", [3, 6, 9])
def test_float16_goes_on_to_the_same_bits(everything, monkeypatch, call):
    source = (everything.path / "model.py").read_text()
    source = source.replace("return F.cross_entropy(outputs,", "return 60 * F.cross_entropy(outputs,")
    everything.write("model.py", source)
    everything.write("config.yaml", EVERYTHING.replace("bfloat16", "float16"))
    assert everything.run(*QAT, "-o", "half", "-q").code == 0
    assert stopped(everything, monkeypatch, f"loss:{call}:2", *QAT, "-o", "run").code == 130
    shutil.copytree(everything.path / "run", everything.path / "forgetful")
    assert everything.run(*QAT, "-o", "run", "-q", "--resume").code == 0
    assert contents(everything.path / "run") == contents(everything.path / "half")
    assert 1 <= result(everything)["num_skipped_steps"] < 6
    monkeypatch.setattr("quantcfg.stages.scaling.LossScaler.load", lambda self, state: None)
    assert everything.run(*QAT, "-o", "forgetful", "-q", "--resume").code == 0
    assert contents(everything.path / "forgetful") != contents(everything.path / "half")


def test_the_average_of_the_weights_is_what_is_kept(project):
    last, still = train(project, "last"), train(project, "still", "ema=0.999999999")
    start = train(project, "start", "optimizer={name: SGD, lr: 1e-30}")
    torch.testing.assert_close(still["conv.weight"], start["conv.weight"], rtol=0, atol=1e-6)
    assert not torch.allclose(last["conv.weight"], start["conv.weight"], rtol=0, atol=1e-3)


def test_without_a_decay_the_average_is_the_weights(project):
    assert equal(train(project, "average", "ema=0.0"), train(project, "last"))


def test_distillation_needs_class_scores(project):
    project.model(
        """
        def loss(outputs, batch):
            return outputs.square().mean()
        def train_data():
            return [torch.rand(8, 1, 4, 4) for _ in range(3)]
        """
    )
    done = project.run(*QAT, "-o", "run", "-q", "--set", "qat.distill={}")
    assert (done.code, done.err) == (
        5,
        "error: qat.distill needs class scores, and outputs and targets do not make them obvious\n"
        "hint: return scores from forward() with integer targets in the batch, or remove qat.distill\n",
    )


def test_a_nan_that_the_loss_does_not_show_is_named_at_the_next_line_of_metrics(project):
    project.model(
        """
        class Net(Net):
            bad = 0.0
            def forward(self, x):
                x = torch.relu(self.conv(x))
                side = x.detach() + self.bad
                return self.classifier((x + torch.nan_to_num(side) * 0).mean((2, 3)))

        def train_data():
            for _ in range(6):
                yield torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
                Net.bad = float("nan")
        """
    )
    done = project.run(*QAT, "-o", "run", "-q", "--set", "qat.epochs=5", "--set", "qat.scheduler=null")
    assert done.code == 6
    assert done.err.startswith("error: add_0.output: "), done.err
    assert "result.json" not in project.names("run")


def test_progress_shows_loss_rate_and_the_newest_metric(project):
    outcome = project.run("qat", "model.py", "config.yaml", "-o", "run")

    assert outcome.code == 0, outcome.err
    last = next(line for line in reversed(outcome.err.splitlines()) if line.startswith("training: "))
    assert re.search(r", loss [\d.]+, lr [\d.e-]+, eval_accuracy [\d.]+, ", last)


HIDDEN = """
class Net(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)
    def forward(self, x):
        self.calls += self.training
        return super().forward(x) * (1 + self.calls / 9)
"""


def test_a_buffer_that_no_state_dict_has_goes_on_and_is_evaluated_too(stoppable, monkeypatch):
    stoppable.model(HIDDEN + STOPPABLE + LOSS_AS_METRIC)
    assert stoppable.run(*QAT, "-o", "whole", "-q").code == 0
    assert stopped(stoppable, monkeypatch, "loss:8:2", *QAT, "-o", "run").code == 130
    assert stoppable.run(*QAT, "-o", "run", "-q", "--resume").code == 0
    assert contents(stoppable.path / "run") == contents(stoppable.path / "whole")
    done = stoppable.run("eval", "model.py", "run", "--format", "json", "-q")
    assert json.loads(done.out)["result"]["metrics"]["qat"] == result(stoppable)["metrics"]["qat"]
