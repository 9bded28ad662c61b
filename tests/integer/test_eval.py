"""``quantcfg eval``: float, fake-quant and integer models side by side."""

import json

import pytest


def test_eval_has_the_integer_model_and_its_ops(calibrated_project):
    done = calibrated_project.run("eval", "model.py", "run", "-q", "--format", "json")
    result = json.loads(done.out)["result"]
    assert list(result["metrics"]) == ["float", "calibrated", "integer"]
    ops = result["integers"]["ops"]
    assert [op["name"] for op in ops][-1] == "classifier"
    assert all(op["equal"] + op["off_by_one"] + op["more"] == op["num_values"] for op in ops)
    assert result["integers"]["num_values"] == sum(op["num_values"] for op in ops)


def test_eval_says_how_many_integers_are_equal(calibrated_project):
    done = calibrated_project.run("eval", "model.py", "run", "-q")
    (line,) = [line for line in done.out.splitlines() if line.startswith("integers ")]
    assert "equal to fake-quant op by op, " in line


def test_eval_can_leave_it_out(calibrated_project):
    done = calibrated_project.run("eval", "model.py", "run", "-q", "--no-integer")
    assert (done.code, "integer" in done.out) == (0, False)


def metrics_of(project, run):
    return json.loads((project.path / run / "result.json").read_text())["metrics"]


def metrics_of_eval(project, run):
    done = project.run("eval", "model.py", run, "-q", "--format", "json")
    return json.loads(done.out)["result"]["metrics"]


def test_calib_evaluates_in_integers_where_asked(project):
    done = project.run("calib", "model.py", "config.yaml", "-o", "run", "-q", "--integer")
    assert [line.split()[0] for line in done.out.splitlines()[1:4]] == ["float", "calibrated", "integer"]
    assert metrics_of(project, "run") == metrics_of_eval(project, "run")


def test_a_calibration_from_statistics_evaluates_in_integers_where_asked(calibrated_project):
    command = ("calib", "model.py", "config.yaml", "--from", "run", "-o", "again", "-q", "--integer")
    assert calibrated_project.run(*command).code == 0
    assert metrics_of(calibrated_project, "again") == metrics_of_eval(calibrated_project, "run")


@pytest.mark.parametrize("setting", ["qat.ema=0.5", "qat.best={metric: accuracy, mode: min}", "qat.bn=keep"])
def test_qat_evaluates_in_integers_what_it_keeps(project, setting):
    done = project.run("qat", "model.py", "config.yaml", "-o", "run", "-q", "--integer", "--set", setting)
    assert done.code == 0, done.err
    found = metrics_of(project, "run")
    assert list(found) == ["float", "calibrated", "qat", "integer"]
    assert found["integer"] == metrics_of_eval(project, "run")["integer"]
    assert "integer" not in metrics_of(project, "run/calib")


def test_runs_have_no_integer_model_unasked(calibrated_project):
    assert list(metrics_of(calibrated_project, "run")) == ["float", "calibrated"]


def test_a_model_without_data_to_evaluate_on_has_no_integer_metrics(project):
    path = project.path / "model.py"
    path.write_text(path.read_text().replace("def eval_data(", "def no_data("))
    done = project.run("calib", "model.py", "config.yaml", "-o", "run", "-q", "--integer")
    assert done.code == 0, done.err
    assert list(metrics_of(project, "run")) == ["float", "calibrated"]
