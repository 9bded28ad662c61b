"""calib, qat and eval on a small model: what they print, what they leave, and the same bytes twice."""

import hashlib
import json

import pytest

from tests.run_files import contents


def test_calib_writes_a_whole_run(project):
    done = project.run("calib", "model.py", "config.yaml", "-o", "run", "-q")

    assert (done.code, done.err) == (0, "")
    assert project.names("run") == [
        "checkpoints/4/manifest.json",
        "checkpoints/4/metrics.jsonl",
        "checkpoints/4/model.safetensors",
        "checkpoints/4/state.json",
        "checkpoints/4/training.safetensors",
        "config/input.yaml",
        "config/overrides.yaml",
        "config/resolved.yaml",
        "log.txt",
        "manifest.json",
        "metrics.jsonl",
        "plan.json",
        "result.json",
        "timing.json",
    ]
    result = json.loads((project.path / "run/result.json").read_text())
    assert (result["stage"], result["num_batches"], result["num_samples"]) == ("calib", 4, 32)
    assert set(result["metrics"]) == {"float", "calibrated"}
    assert (project.path / "run/config/input.yaml").read_text() == (project.path / "config.yaml").read_text()


def test_the_report_is_a_table_on_stdout_and_progress_is_on_stderr(project):
    done = project.run("calib", "model.py", "config.yaml", "-o", "run")
    lines = done.out.splitlines()

    assert [line.split()[0] for line in lines] == ["accuracy", "float", "calibrated", "amount", "time", "run"]
    assert lines[3] == "amount    4 batches, 32 samples"
    assert lines[5] == "run       run"
    assert [line.partition(":")[0] for line in done.err.splitlines()] == [
        "evaluating the float model",
        "calibrating",
        "evaluating the calibrated model",
    ]
    assert "\x1b" not in done.out + done.err


def test_the_report_as_json_is_all_of_stdout(project):
    project.model("print('hello from the user')")
    done = project.run("calib", "model.py", "config.yaml", "-o", "run", "--format", "json")

    report = json.loads(done.out)
    assert report["run"] == "run"
    assert report["result"] == json.loads((project.path / "run/result.json").read_text())
    assert "hello from the user" in done.err


def test_qat_calibrates_first_trains_and_reports_all_three(project):
    done = project.run("qat", "model.py", "config.yaml", "-o", "run", "--format", "json")
    metrics = json.loads(done.out)["result"]["metrics"]

    assert (done.code, list(metrics)) == (0, ["float", "calibrated", "qat"])
    assert {"calib/result.json", "result.json", "checkpoints/18/model.safetensors"} <= set(
        project.names("run")
    )
    rows = [json.loads(line) for line in (project.path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "evaluation" in row] == [6, 12, 18]
    assert rows[0]["lr"] == 0.05
    assert rows[-1]["evaluation"] == metrics["qat"]


def test_qat_starts_from_a_named_calibration(project):
    project.run("calib", "model.py", "config.yaml", "-o", "calibrated")
    assert project.run("qat", "model.py", "config.yaml", "--from", "calibrated", "-o", "named").code == 0
    assert project.run("qat", "model.py", "config.yaml", "-o", "own").code == 0

    own = {k: v for k, v in contents(project.path / "own").items() if not k.startswith("calib/")}
    assert contents(project.path / "named") == own


@pytest.mark.parametrize("stage", ["calib", "qat"])
def test_the_same_command_and_seed_give_the_same_bytes(project, stage):
    for name in ("a", "b"):
        assert project.run(stage, "model.py", "config.yaml", "-o", name, "--seed", "7").code == 0

    assert contents(project.path / "a") == contents(project.path / "b")


def test_another_seed_trains_another_model(project):
    for seed in ("0", "1"):
        project.run("qat", "model.py", "config.yaml", "-o", seed, "--seed", seed)
    first, second = (contents(project.path / seed)["checkpoints/18/model.safetensors"] for seed in ("0", "1"))

    assert first != second


@pytest.mark.parametrize(("stage", "name"), [("calib", "calibrated"), ("qat", "qat")])
def test_eval_reproduces_the_metrics_of_a_moved_run(project, stage, name):
    project.run(stage, "model.py", "config.yaml", "-o", "run", "--seed", "3")
    (project.path / "run").rename(project.path / "moved")
    (project.path / "config.yaml").unlink()
    done = project.run("eval", "model.py", "moved", "--format", "json")
    recorded = json.loads((project.path / "moved/result.json").read_text())["metrics"]

    metrics = json.loads(done.out)["result"]["metrics"]
    assert list(metrics) == ["float", name, "integer"]
    assert metrics | {"integer": 0} == {"float": recorded["float"], name: recorded[name], "integer": 0}


def test_samples_cut_the_last_batch(project):
    done = project.run("calib", "model.py", "config.yaml", "-o", "run", "--format", "json",
                       "--set", "calib.batches=null", "--set", "calib.samples=19")  # fmt: skip
    result = json.loads(done.out)["result"]

    assert (result["num_batches"], result["num_samples"]) == (3, 19)


def test_steps_end_training_in_the_middle_of_an_epoch(project):
    project.write("steps.yaml", (project.path / "config.yaml").read_text().replace("epochs: 3", "steps: 8"))
    done = project.run("qat", "model.py", "steps.yaml", "-o", "run", "--format", "json")

    assert json.loads(done.out)["result"]["num_steps"] == 8


def test_a_run_without_evaluation_data_has_no_metrics(project):
    project.model("del eval_data")
    done = project.run("calib", "model.py", "config.yaml", "-o", "run")

    assert done.code == 0
    assert done.out.splitlines()[0] == "no metrics: the model file has no eval_data()"


def test_plan_writes_nothing(project):
    done = project.run("plan", "model.py", "config.yaml")

    assert done.code == 0
    assert "coverage   100.0% of multiply-accumulates" in done.out
    assert project.names() == ["config.yaml", "model.py"] or "__pycache__" in str(project.names())
    expanded = project.run("plan", "model.py", "config.yaml", "--expand").out
    assert "classifier" in expanded
    assert (
        json.loads(project.run("plan", "model.py", "config.yaml", "--format", "json").out)["stage"] == "calib"
    )


def test_a_guard_that_does_not_hold_ends_with_4_after_the_report(project):
    done = project.run("calib", "model.py", "config.yaml", "-o", "run",
                       "--set", "guards.metric_drop={accuracy: '< -1'}")  # fmt: skip

    assert done.code == 4
    assert "guard     metric_drop.accuracy" in done.out
    assert done.err.splitlines()[-2].startswith("error: metric_drop.accuracy is ")
    assert "result.json" in project.names("run")


def test_a_guard_on_coverage_is_held_before_anything_runs(project):
    done = project.run(
        "calib", "model.py", "config.yaml", "-o", "run", "--set", "guards.quantized_macs='> 1'"
    )

    assert (done.code, done.out) == (4, "")
    assert done.err.splitlines()[0] == "error: quantized_macs is 1, wanted > 1"
    assert not (project.path / "run").exists()


def test_a_guard_on_a_metric_that_nobody_measures_is_refused_before_the_calibration(project):
    done = project.run("calib", "model.py", "config.yaml", "-o", "run",
                       "--set", "guards.metric_drop={acuracy: '< 1'}")  # fmt: skip

    assert (done.code, done.out) == (4, "")
    assert done.err.splitlines()[-2:] == [
        "error: metric_drop.acuracy was not measured, wanted < 1",
        "hint: metrics of this model: accuracy",
    ]
    assert "result.json" not in project.names("run")


def test_a_plan_of_a_model_whose_guard_fails_is_shown_and_ends_with_4(project):
    done = project.run("plan", "model.py", "config.yaml", "--set", "guards.quantized_macs='> 1'")

    assert done.code == 4
    assert "coverage   100.0% of multiply-accumulates" in done.out
    assert done.err.splitlines()[0] == "error: quantized_macs is 1, wanted > 1"


def test_the_manifest_says_how_the_run_came_to_be(project):
    project.run("calib", "model.py", "config.yaml", "-o", "run", "-q", "--seed", "3")
    manifest = json.loads((project.path / "run/manifest.json").read_text())

    assert manifest["command"] == [
        "quantcfg",
        "calib",
        "model.py",
        "config.yaml",
        "-o",
        "run",
        "-q",
        "--seed",
        "3",
    ]
    assert (manifest["stage"], manifest["seed"], manifest["device"]) == ("calib", 3, "cpu")
    assert manifest["model_file"] == hashlib.sha256((project.path / "model.py").read_bytes()).hexdigest()
    assert {"torch", "python", "numpy", "quantcfg", "safetensors"} == set(manifest["versions"])


def test_eval_says_when_the_float_weights_are_others(project):
    project.run("calib", "model.py", "config.yaml", "-o", "run", "-q")
    project.model("""
        def build_model():
            torch.manual_seed(1)
            return Net()
    """)
    done = project.run("eval", "model.py", "run")
    assert done.code == 0
    assert "note: the float weights of the model are not those of the run 'run'\n" in done.err
