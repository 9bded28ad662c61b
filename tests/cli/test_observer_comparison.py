"""Observers that are compared in one calibration: the outcome is that of a config that names the best."""

import json

import pytest
import torch
from safetensors.torch import load_file

from quantcfg.config.load import load_config
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import calibrating, fake_quants
from quantcfg.stages.observer_comparison import open_comparison
from tests.cli.stopping import STOPPABLE, stopped
from tests.run_files import contents

CALIB = ("calib", "model.py", "config.yaml")
AVERAGED = ("--set", "qconfig.global.activation_qkwargs={dtype: qint8, averaging_constant: 0.3}")
ALL = "[min_max, clip, percentile, clip_std, mse, kl, mix]"
HARD = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.classifier = nn.Linear(4, 3)
        self.scaled = nn.Linear(3, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.again(torch.relu(self.again(x)) + x))
        return self.scaled(self.classifier(x.mean((2, 3)) * 1.5)).softmax(-1)
"""
HARD_CONFIG = """
version: 1
qconfig:
  global: w8a8
  module_type:
    torch.nn.Linear: {preset: w8a8, activation_observer: percentile, activation_qkwargs: {percentile: 99.0}}
  module_name:
    again: {preset: w4a8, activation_qkwargs: {dtype: quint6, qscheme: per_tensor_affine}}
    relu_0: {preset: w8a8, activation_qkwargs: {dtype: qint16}}
    scaled: {activation_observer: fixed_scale, activation_qkwargs: {scale: 0.03}, weight_fake_quant: lsq}
  templates: [high_precision_output, softmax_int16]
calib: {batches: 5}
"""
METRICS = """
calls = []

def evaluate(model, data):
    calls.append(1)
    return {"score": SCORES[len(calls) - 1]}
"""


@pytest.fixture
def hard(project):
    """Chains, a module called twice, rules and templates of every rank, several dtypes, a fixed scale."""
    project.model(HARD)
    project.write("config.yaml", HARD_CONFIG)
    return project


def result(project, run):
    return json.loads((project.path / run / "result.json").read_text())


def chosen(project, run):
    return {(row["op"], row["slot"]): row["chosen"] for row in result(project, run)["comparison"]["ops"]}


def model_of(project, run):
    return (project.path / run / "checkpoints/5/model.safetensors").read_bytes()


def test_the_least_noise_wins_each_op(hard):
    done = hard.run(*CALIB, "-o", "run", "--set", f"calib.compare={ALL}")
    assert done.code == 0, done.err
    rows = result(hard, "run")["comparison"]["ops"]
    assert {(row["op"], row["slot"]) for row in rows} >= {
        ("again", "weight"), ("again", "activation"), ("relu_0", "activation"), ("softmax_0", "activation")
    }  # fmt: skip
    for row in rows:
        assert row["noise"][row["chosen"]] == min(row["noise"].values())
    assert len({row["chosen"] for row in rows}) > 1
    assert "kl" not in next(row for row in rows if row["op"] == "relu_0")["noise"]  # 16 bits
    assert "scaled" not in {row["op"] for row in rows if row["slot"] == "activation"}
    assert "clip" in done.out.splitlines()[0]


@pytest.mark.parametrize("per", ["op", "model"])
def test_the_run_is_that_of_a_config_that_names_the_chosen_observers(hard, per):
    assert hard.run(*CALIB, "-o", "run", "-q", "--set", f"calib.compare={ALL}",
                    "--set", f"calib.compare_per={per}").code == 0  # fmt: skip
    done = hard.run("calib", "model.py", "run/config/resolved.yaml", "-o", "named", "-q")
    assert done.code == 0, done.err
    assert model_of(hard, "run") == model_of(hard, "named")
    both = [result(hard, run) for run in ("run", "named")]
    del both[0]["comparison"]
    assert both[0] == both[1]
    assert hard.run("diff", "run", "named").out.splitlines()[0] == "run and named mean the same"


@pytest.mark.parametrize("target", ["generic", "tensorrt"])
def test_nothing_but_observers_differs_from_the_config(hard, target):
    where = ("--set", f"export.target={target}", "--set", "export.unsupported=adjust")
    assert hard.run(*CALIB, "-o", "run", "-q", "--set", f"calib.compare={ALL}", *where).code == 0
    assert hard.run(*CALIB, "-o", "plain", "-q", *where).code == 0
    plans = [json.loads((hard.path / run / "plan.json").read_text())["ops"] for run in ("run", "plain")]
    for row in (row for plan in plans for row in plan):
        for slot in ("activation", "weight"):
            (row[slot] or {}).pop("observer", None)
        for name in ("qconfig", "rule", "place", "beaten"):
            del row[name]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("kind", "more"),
    [*((kind, ()) for kind in ("min_max", "mse", "kl", "mix", "clip_std")), ("mse", AVERAGED)],
)
def test_the_winner_by_metric_is_calibrated_as_if_it_were_alone(project, kind, more):
    kinds = ["min_max", "clip_std", "mse", "kl", "mix"]
    scores = [0.9, *(0.5 + (each == kind) / 10 for each in kinds), 0.6]
    project.model(METRICS.replace("SCORES[", f"{scores}["))
    done = project.run(*CALIB, "-o", "run", "-q", "--set", f"calib.compare=[{', '.join(kinds)}]",
                       "--set", "calib.compare_by={metric: score}", "--set", "calib.compare_per=model",
                       "--set", "calib.batches=5", *more)  # fmt: skip
    assert done.code == 0, done.err
    assert result(project, "run")["comparison"]["metrics"][kind] == {"score": 0.6}
    alone = [f"qconfig.global.{slot}_observer={kind}" for slot in ("activation", "weight")]
    assert project.run(*CALIB, "-o", "alone", "-q", "--set", alone[0], "--set", alone[1],
                       "--set", "calib.batches=5", *more).code == 0  # fmt: skip
    assert model_of(project, "run") == model_of(project, "alone")


def test_by_metric_an_op_keeps_another_observer_where_that_helps(project):
    # float, three candidates everywhere, min_max again; then the first op with each of the others
    scores = [0.9, 0.5, 0.4, 0.3, 0.5, 0.4, 0.6]
    project.model(METRICS.replace("SCORES[len(calls) - 1]", f"({scores} + [0.1] * 99)[len(calls) - 1]"))
    done = project.run(*CALIB, "-o", "run", "-q", "--set", "calib.compare=[min_max, mse, percentile]",
                       "--set", "calib.compare_by={metric: score}", "--set", "calib.batches=5")  # fmt: skip
    assert done.code == 0, done.err
    kinds = list(chosen(project, "run").values())
    assert kinds == ["percentile", *["min_max"] * (len(kinds) - 1)]


def test_a_comparison_goes_on_to_the_same_bits(project, monkeypatch):
    project.model(STOPPABLE)
    compare = ("--set", "calib.compare=[min_max, percentile, kl]")
    assert project.run(*CALIB, "-o", "whole", "-q", *compare).code == 0
    assert stopped(project, monkeypatch, "calib:3:2", *CALIB, "-o", "run", *compare).code == 130
    assert project.run(*CALIB, "-o", "run", "-q", "--resume", *compare).code == 0
    assert contents(project.path / "run") == contents(project.path / "whole")


def test_a_comparison_that_fails_at_its_very_end_goes_on_to_the_same_bits(project, monkeypatch):
    compare = ("--set", "calib.compare=[min_max, percentile, kl]")
    assert project.run(*CALIB, "-o", "whole", "-q", *compare).code == 0
    with monkeypatch.context() as patch:
        patch.setattr("quantcfg.runs.directory.RunDirectory.rewrite", None)
        assert project.run(*CALIB, "-o", "run", "-q", *compare).code == 7
    assert project.run(*CALIB, "-o", "run", "-q", "--resume", *compare).code == 0
    assert contents(project.path / "run") == contents(project.path / "whole")


# the evaluations are those of the float model, of the two candidates, and of what is calibrated
@pytest.mark.parametrize("evaluation", [2, 3])
def test_what_is_compared_by_a_metric_is_saved_before(project, monkeypatch, evaluation):
    own = "\ncalls['eval'] = 0\ndef evaluate(model, data):\n    stop_at('eval')\n    return {'score': 1.0}\n"
    project.model(STOPPABLE + own)
    compare = ("--set", "calib.compare=[min_max, kl]", "--set", "calib.compare_by={metric: score, mode: max}")
    assert project.run(*CALIB, "-o", "whole", "-q", *compare).code == 0
    done = stopped(project, monkeypatch, f"eval:{evaluation}:15", *CALIB, "-o", "run", *compare)
    assert done.code == 143
    assert done.err.startswith("error: stopped by SIGTERM\nhint: resume with: quantcfg calib model.py ")
    resumed = project.run(*CALIB, "-o", "run", "--resume", *compare)
    assert resumed.code == 0
    assert "note: going on from step 4 of 'run'" in resumed.err
    assert contents(project.path / "run") == contents(project.path / "whole")


def test_a_compared_calibration_is_evaluated_and_trained_from(hard):
    assert hard.run(*CALIB, "-o", "run", "-q", "--set", f"calib.compare={ALL}").code == 0
    report = json.loads(hard.run("eval", "model.py", "run", "--format", "json").out)
    assert result(hard, "run")["metrics"].items() <= report["result"]["metrics"].items()
    assert hard.run("qat", "model.py", "config.yaml", "--from", "run", "-o", "qat", "-q",
                    "--set", "qat.epochs=1").code == 0  # fmt: skip


def test_memory_does_not_depend_on_the_number_of_batches(project):
    config = project.path / "config.yaml"
    config.write_text(f"version: 1\nqconfig: {{global: w8a8}}\ncalib: {{compare: {ALL}}}\n")
    float_model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU()).eval()
    loaded = load_config(config)
    model = prepare(float_model, loaded, example_inputs=torch.rand(2, 4))
    assert open_comparison(loaded, float_model, model) is not None
    sizes = []
    with calibrating(model):
        for batch in range(80):
            model(torch.randn(64, 4))
            if batch % 20 == 19:
                sizes.append(sum(tensor.numel() for tensor in model.state_dict().values()))
    assert len(set(sizes)) == 1


@pytest.mark.parametrize(
    ("compared", "beside"),
    [("percentile, mse, mix", []), ("min_max, mse", ["MinMaxObserver"]), ("mse, kl", [])],
)
def test_observers_that_count_alike_count_once(project, compared, beside):
    config = project.path / "config.yaml"
    config.write_text(f"version: 1\nqconfig: {{global: w8a8}}\ncalib: {{compare: [{compared}]}}\n")
    float_model, loaded = torch.nn.Linear(4, 6).eval(), load_config(config)
    model = prepare(torch.nn.Sequential(float_model), loaded, example_inputs=torch.rand(2, 4))
    open_comparison(loaded, torch.nn.Sequential(float_model), model)
    output = next(module for name, module in fake_quants(model).items() if name.endswith(".output"))
    assert type(output.observer).__name__ == "MSEObserver"
    assert [type(rival).__name__ for rival in output.rivals] == beside


def test_without_data_nothing_is_compared(project):
    assert project.run(*CALIB, "-o", "counted", "-q").code == 0
    done = project.run(*CALIB, "-o", "again", "-q", "--from", "counted", "--set", "calib.compare=[mse, kl]")
    assert (done.code, done.err) == (
        2,
        "error: calib.compare needs data, and --from reads none\n"
        "hint: --set calib.compare=null recalculates with the observers of the rules\n",
    )


def test_a_metric_that_does_not_exist_is_refused_before_calibrating(project):
    done = project.run(*CALIB, "-o", "run", "-q", "--set", "calib.compare=[mse, kl]",
                       "--set", "calib.compare_by={metric: acuracy}")  # fmt: skip
    assert (done.code, done.err) == (
        2,
        "error: calib.compare_by.metric is 'acuracy'; the metrics are 'accuracy'\n",
    )


def test_what_is_compared_is_stored_as_plain_tensors(project):
    assert project.run(*CALIB, "-o", "run", "-q", "--set", "calib.compare=[min_max, mse]").code == 0
    names = load_file(project.path / "run/checkpoints/4/model.safetensors")
    assert not [name for name in names if "rivals" in name]
