"""The commands that look at a config and a model together: validate --model, explain, diff."""

import json

import pytest

from tests.cli.conftest import RULES

TYPO = "version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    clasifier: w8a16\n"
IDLE = "version: 1\nqconfig:\n  global: w8a8\n  module_name:\n    drop: w8a16\n"


@pytest.fixture
def files(project):
    for name, text in (("rules.yaml", RULES), ("typo.yaml", TYPO), ("idle.yaml", IDLE)):
        project.write(name, text)
    return project


def test_validate_checks_the_rules_of_every_config_against_the_model(files):
    done = files.run("validate", "config.yaml", "typo.yaml", "idle.yaml", "--model", "model.py")

    assert (done.code, done.out) == (1, "")
    assert "error[QC201]: the rule `clasifier` matches nothing\n --> typo.yaml:5:5\n" in done.err
    assert "did you mean `classifier`?" in done.err
    assert "warning[QC213]" in done.err
    assert done.err.endswith("typo.yaml: 1 error\nidle.yaml: 1 warning\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["config.yaml"], 0),
        (["idle.yaml"], 0),
        (["idle.yaml", "--strict"], 3),
        (["typo.yaml"], 1),
        (["idle.yaml", "--format", "json"], 0),
        (["nowhere.yaml"], 2),
    ],
)
def test_exit_codes_of_validate_on_a_model(files, arguments, code):
    assert files.run("validate", *arguments, "--model", "model.py").code == code


def test_a_model_that_raises_is_told_from_a_config_that_is_wrong(files):
    files.model("raise ValueError('broken')")
    assert files.run("validate", "config.yaml", "--model", "model.py").code == 5


def test_validate_writes_nothing(files):
    files.run("validate", "config.yaml", "--model", "model.py")
    assert not [name for name in files.names() if name.startswith("runs")]


def test_explain_shows_winner_losers_origins_and_what_would_be(files):
    done = files.run("explain", "model.py", "rules.yaml", "classifier")

    assert (done.code, done.err) == (0, "")
    assert [" ".join(line.split()) for line in done.out.splitlines()] == [
        "classifier, Linear, stage calib: sensitive*",
        "quantized",
        "output fake_quant, mse, dtype=qint16",
        "weight fake_quant, mse, ch_axis=0, qscheme=per_channel_symmetric",
        "",
        "rule at gives because",
        "won pattern class* rules.yaml:9:5 inherit* pattern beats type",
        "beneath type Linear rules.yaml:7:5 sensitive type is beaten by pattern",
        "lost global rules.yaml:5:3 w8a8 global is beaten by pattern",
        "",
        "field value from at",
        "activation_fake_quant fake_quant default",
        "activation_observer mse preset w8a8 rules.yaml:7:5",
        "activation_qkwargs.dtype qint16 written rules.yaml:3:57",
        "activation_qkwargs.nonfinite error default",
        "activation_qkwargs.qscheme per_tensor_symmetric default",
        "activation_qkwargs.stride 1 default",
        "weight_fake_quant fake_quant default",
        "weight_observer mse written rules.yaml:9:48",
        "weight_qkwargs.ch_axis 0 default",
        "weight_qkwargs.dtype qint8 default",
        "weight_qkwargs.nonfinite error default",
        "weight_qkwargs.qscheme per_channel_symmetric default",
        "weight_qkwargs.stride 1 default",
        "",
        "without pattern class*: sensitive",
        "by module_type 'Linear' (rules.yaml:7)",
        "weight_observer: mse -> min_max",
    ]


def test_explain_fills_in_defaults_in_what_would_be_otherwise(files):
    files.write(
        "rules.yaml",
        RULES.replace("Linear: sensitive", "Dropout: sensitive").replace(
            "{preset: inherit, weight_observer: mse}", "sensitive"
        ),
    )
    done = files.run("explain", "model.py", "rules.yaml", "classifier")
    assert done.code == 0
    assert "activation_qkwargs.dtype: qint16 -> qint8" in " ".join(done.out.split())


def test_an_override_is_an_origin_too(files):
    done = files.run(
        "explain", "model.py", "rules.yaml", "classifier", "--set", "qconfigs.sensitive.weight_observer=kl"
    )
    assert done.code == 0
    assert "weight_observer: mse -> kl" in done.out
    below = files.run(
        "explain", "model.py", "rules.yaml", "conv", "--set", "qconfig.global={weight_observer: mse}"
    )
    assert "weight_observer mse written --set:1:34" in " ".join(below.out.split())


def test_explain_of_a_rule_shows_what_it_wins_and_loses(files):
    done = files.run("explain", "model.py", "rules.yaml", "rule:global", "--format", "json")
    found = json.loads(done.out)

    assert found["wins"] == ["conv", "relu_0", "mean_0", "add_0", "drop"]
    assert found["loses"] == [{"name": "classifier", "to": "module_name 'class*' (rules.yaml:9)"}]
    assert files.run("explain", "model.py", "rules.yaml", "rule:Linear").code == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("clasifier", "hint: did you mean classifier?"),
        ("classifier.fc", "matching stops at segment 2: `classifier` has no children"),
        ("rule:Liner", "hint: did you mean rule:Linear?"),
    ],
)
def test_an_unknown_op_or_rule_is_a_usage_error_with_a_guess(files, name, hint):
    done = files.run("explain", "model.py", "rules.yaml", name)
    assert done.code == 2
    assert hint in done.err


def test_explain_takes_one_or_three(files):
    assert files.run("explain", "model.py", "rules.yaml").code == 2
    assert files.run("explain", "qat.bn").code == 0


def test_configs_that_mean_the_same_are_equal_however_they_are_spelt(files):
    files.write("a.yaml", "version: 1\nqconfig: {global: w8a8}\n")
    files.write("b.toml", 'version = 1\n[qconfigs.mine]\npreset = "w8a8"\n[qconfig]\nglobal = "mine"\n')
    files.write("c.yaml", "version: 1\nextends: a.yaml\nqat: {epochs: 1}\n")
    files.write("d.yaml", "version: 1\nqconfig: {global: {preset: w8a8, weight_qkwargs: {dtype: qint8}}}\n")

    for other in ("b.toml", "c.yaml", "d.yaml"):
        done = files.run("diff", "a.yaml", other)
        assert (done.code, done.out) == (0, f"a.yaml and {other} mean the same\n")
        assert files.run("diff", "a.yaml", other, "--model", "model.py").code == 0


def test_diff_names_rules_fields_stages_and_settings(files):
    files.write("a.yaml", "version: 1\nqconfig: {global: w8a8, module_name: {conv: w8a16}}\n")
    files.write("b.yaml", "version: 1\nqconfig: {global: w8a8_lsq}\nqat: {epochs: 3}\n")
    done = files.run("diff", "a.yaml", "b.yaml", "--format", "json")
    found = json.loads(done.out)

    assert (done.code, found["equal"], found["ops"]) == (4, False, None)
    changes = [tuple(change.values()) for change in found["changes"]]
    assert [change for change in changes if "conv" not in change[0]] == [
        ("global: activation_fake_quant", "fake_quant", "lsq", "qat"),
        ("global: weight_fake_quant", "fake_quant", "lsq", "qat"),
        ("global: activation_qkwargs.averaging_constant", "0.01", "1.0", "qat"),
        ("global: activation_qkwargs.use_grad_scaling", "-", "true", "qat"),
        ("global: weight_qkwargs.use_grad_scaling", "-", "true", "qat"),
        ("qat.epochs", "1", "3", "both"),
    ]
    assert {change[0] for change in changes if "conv" in change[0]} == {"module_name conv"}


def test_the_order_of_patterns_is_part_of_the_meaning(files):
    both = "version: 1\nqconfig:\n  module_name:\n    {}\n    {}\n"
    files.write("a.yaml", both.format("'c*': w8a8", "'*v': w8a16"))
    files.write("b.yaml", both.format("'*v': w8a16", "'c*': w8a8"))

    assert "order of module_name" in files.run("diff", "a.yaml", "b.yaml").out
    assert "conv" in files.run("diff", "a.yaml", "b.yaml", "--model", "model.py").out


def test_diff_on_a_model_is_the_difference_of_the_resolved_tables(files):
    done = files.run("diff", "config.yaml", "rules.yaml", "--model", "model.py", "--format", "json")
    found = json.loads(done.out)
    table = {}
    for name in ("config.yaml", "rules.yaml"):
        for stage in ("calib", "qat"):
            plan = json.loads(files.run("plan", "model.py", name, "--stage", stage, "--format", "json").out)
            for op in plan["ops"]:
                table.setdefault((op["name"], stage), []).append((op["role"], op["activation"], op["weight"]))

    assert done.code == 4
    assert {(op["name"], op["stage"]) for op in found["ops"]} >= {
        key for key, (before, after) in table.items() if before != after
    }
    assert all(op["before"] != op["after"] for op in found["ops"])


def test_a_run_is_compared_by_the_config_that_it_used(files):
    assert (
        files.run("calib", "model.py", "config.yaml", "-o", "run", "-q", "--set", "calib.batches=2").code == 0
    )
    done = files.run("diff", "run", "config.yaml", "--format", "json")

    assert done.code == 4
    assert json.loads(done.out)["changes"] == [
        {"what": "calib.batches", "before": "2", "after": "4", "stage": "both"}
    ]
    assert files.run("diff", "run", "run", "--model", "model.py").code == 0
    assert files.run("diff", ".", "config.yaml").code == 2


def test_plan_of_a_part_keeps_the_coverage_of_the_whole(files):
    whole = json.loads(files.run("plan", "model.py", "rules.yaml", "--format", "json").out)
    for only in ("class*", "classifier", "passed through"):
        part = json.loads(files.run("plan", "model.py", "rules.yaml", "--format", "json", "--only", only).out)
        assert 0 < len(part["ops"]) < len(whole["ops"])
        assert all(op in whole["ops"] for op in part["ops"])
        assert part["coverage"] == whole["coverage"]
    assert files.run("plan", "model.py", "rules.yaml", "--only", "nothing").code == 2
    assert files.run("plan", "model.py", "rules.yaml", "--only", "{a").code == 2


def test_plan_against_another_config_lists_what_it_would_change(files):
    done = files.run("plan", "model.py", "rules.yaml", "--against", "config.yaml", "--format", "json")
    both = files.run("diff", "config.yaml", "rules.yaml", "--model", "model.py", "--format", "json")
    diff = json.loads(both.out)

    assert done.code == 0
    assert json.loads(done.out)["against"] == [op for op in diff["ops"] if op["stage"] == "calib"]
    assert "against" not in json.loads(files.run("plan", "model.py", "rules.yaml", "--format", "json").out)


WIDE = """
version: 1
qconfig:
  global: w8a8
  module_name: {classifier: {preset: w8a8, activation_qkwargs: {dtype: qint16}}}
"""


def test_what_a_target_changes_is_explained_and_compared(project):
    project.write("wide.yaml", WIDE)
    project.write("target.yaml", WIDE + "export: {target: tensorrt, unsupported: adjust}\n")
    explained = project.run("explain", "model.py", "target.yaml", "classifier").out.splitlines()
    assert [line.strip() for line in explained[1:4]] == [
        "quantized",
        "the export target changes its activation"
        " from qint16 per_tensor_symmetric to qint8 per_tensor_symmetric",
        "output  fake_quant, mse, dtype=qint8, qscheme=per_tensor_symmetric",
    ]
    done = project.run("diff", "wide.yaml", "target.yaml", "--model", "model.py", "--format", "json")
    assert {op["name"] for op in json.loads(done.out)["ops"]} >= {"classifier"}


def test_what_a_target_refuses_on_a_model_is_said_with_the_rest(project):
    project.write("up.yaml", "version: 1\nqconfig: {global: w8a8}\nexport: {target: tensorrt}\n")
    project.model("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.classifier = nn.ConvTranspose2d(1, 4, 2), nn.Linear(4, 3)

    def forward(self, x):
        return self.classifier(self.up(x).mean((2, 3)))
""")
    done = project.run("validate", "up.yaml", "--model", "model.py")
    assert (done.code, done.out) == (1, "")
    assert "error[QC216]: `tensorrt` takes no qint8 per_channel_symmetric weights: `up`" in done.err
