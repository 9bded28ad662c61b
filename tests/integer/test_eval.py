"""``quantcfg eval``: float, fake-quant and integer models side by side."""

import json


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
