"""The examples: what their pages promise of accuracy, sizes and reproduction."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantcfg.cli.main import main
from tests.examples.conftest import ROOT, Done

Ran = Callable[[str], Done]
EXAMPLES = ("digits", "topics")
IMAGE, POINT = 1 / 500, 0.01  # the held-out split of the digits has 500 images


def run_stage(stage: str, example: str, config: str, run: Path, *options: str) -> dict[str, Any]:
    """Run a stage of an example and give its ``result.json``."""
    model, path = ROOT / "examples" / example / "model.py", ROOT / "configs" / config
    assert main([stage, str(model), str(path), "-o", str(run), *options]) == 0
    return json.loads((run / "result.json").read_text())


def accuracies(result: dict[str, Any]) -> dict[str, float]:
    return {name: metrics["accuracy"] for name, metrics in result["metrics"].items()}


def weights_of(run: Path) -> list[bytes]:
    """The tensors of the final checkpoint, calibration included, as they lie on the disk."""
    return [path.read_bytes() for path in sorted(run.rglob("model.safetensors"))]


def on_page(example: str, command: str) -> str:
    """The command of an example's page that begins with ``command``."""
    page = (ROOT / "examples" / example / "README.md").read_text()
    (found,) = re.findall(rf"^\$ ({command} .*)$", page, re.MULTILINE)
    return found


def test_digits_in_8_bits_calibrate_within_half_a_point_of_float(ran: Ran) -> None:
    found = accuracies(ran(on_page("digits", "quantcfg calib examples/digits/model.py")).result)
    assert found["float"] >= 0.98
    assert abs(found["float"] - found["calibrated"]) <= 0.5 * POINT


def test_digits_in_4_bits_lose_by_calibration_what_training_brings_back(ran: Ran) -> None:
    found = accuracies(ran(on_page("digits", "quantcfg qat")).result)
    assert found["float"] - found["calibrated"] >= POINT
    assert found["float"] - found["qat"] <= POINT + 1.5 * IMAGE  # another processor rounds otherwise
    assert found["qat"] > found["calibrated"]


def test_topics_in_3_bits_lose_by_calibration_what_training_brings_back(ran: Ran) -> None:
    found = accuracies(ran(on_page("topics", "quantcfg qat")).result)
    assert found["float"] - found["calibrated"] >= POINT
    assert found["float"] - found["qat"] <= 1.5 * POINT
    assert found["qat"] > found["calibrated"]


def test_toml_and_yaml_give_the_same_run(tmp_path: Path) -> None:
    one_epoch = ("--set", "qat.epochs=1")
    results = [
        run_stage("qat", "topics", f"topics_w8a8.{kind}", tmp_path / kind, *one_epoch)
        for kind in ("yaml", "toml")
    ]
    assert results[0] == results[1]
    assert len(weights_of(tmp_path / "yaml")) == 2
    assert weights_of(tmp_path / "yaml") == weights_of(tmp_path / "toml")


def test_the_same_command_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    for run in ("first", "second"):
        run_stage("qat", "digits", "digits_w4a4.yaml", tmp_path / run, "--set", "qat.epochs=2", "--seed", "7")
    first, second = tmp_path / "first", tmp_path / "second"
    assert (first / "result.json").read_bytes() == (second / "result.json").read_bytes()
    assert weights_of(first) == weights_of(second)


@pytest.mark.parametrize("example", ["digits", pytest.param("topics", marks=pytest.mark.slow)])
def test_the_training_script_reaches_the_accuracy_of_the_committed_weights(
    example: str, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    script = ROOT / "examples" / example / "train.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), "--output", str(weights)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    trained = re.search(r"held-out split: ([\d.]+)", done.stdout)
    stated = re.search(r"^float +([\d.]+)$", script.with_name("README.md").read_text(), re.MULTILINE)
    assert trained
    assert stated
    assert abs(float(trained[1]) - float(stated[1])) <= 0.03
    assert weights.stat().st_size == script.with_name("weights.safetensors").stat().st_size


@pytest.mark.parametrize("example", EXAMPLES)
def test_committed_weights_are_small(example: str) -> None:
    assert (ROOT / "examples" / example / "weights.safetensors").stat().st_size < 2**20


@pytest.mark.parametrize("example", EXAMPLES)
def test_nothing_in_a_model_file_knows_of_quantization(example: str) -> None:
    assert "quantcfg" not in (ROOT / "examples" / example / "model.py").read_text()


def test_the_held_out_digits_are_in_no_other_split() -> None:
    from examples.digits.model import load_split

    train, test = ({bytes(image.numpy()) for image in load_split(part)[0]} for part in ("train", "test"))
    assert len(train & test) == 0


def test_the_held_out_windows_are_in_no_other_split() -> None:
    from examples.topics.model import load_split

    train, test = ({tuple(window) for window, _ in load_split(part)} for part in ("train", "test"))
    assert test
    assert not train & test
