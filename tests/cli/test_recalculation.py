"""Ranges recalculated from the statistics of a calibration equal those of a calibration with data."""

import json

import pytest
import torch
from safetensors.torch import load_file

from quantcfg.errors import NumericError
from quantcfg.numeric.observers import OBSERVERS

CALIB = ("calib", "model.py", "config.yaml")
CONFIG = """
version: 1
qconfig:
  global: {activation_observer: mse, weight_observer: mse}
calib: {batches: 5}
"""
NO_DATA = """
def calib_data():
    yield next(iter(DataLoader(dataset(1), batch_size=8)))
    raise AssertionError("data was asked for")
"""


def qparams(folder):
    tensors = load_file(next((folder / "checkpoints").iterdir()) / "model.safetensors")
    wanted = ("scale", "zero_point", "has_qparams", "min_val", "max_val", "num_batches")
    return {name: value.tolist() for name, value in tensors.items() if name.endswith(wanted)}


@pytest.fixture
def counted(project):
    """The project with the run of a calibration by mse, and without its data."""
    project.write("config.yaml", CONFIG)
    assert project.run(*CALIB, "-o", "counted", "-q").code == 0
    return project


def both(project, *settings):
    """The folders of the calibration with data and of the recalculation, under the same settings."""
    options = [part for setting in settings for part in ("--set", f"qconfig.global.{setting}")]
    done = project.run(*CALIB, "-o", "data", "-q", *options)
    assert done.code == 0, done.err
    project.model(NO_DATA)
    done = project.run(*CALIB, "-o", "again", "-q", "--from", "counted", *options)
    assert done.code == 0, done.err
    return project.path / "data", project.path / "again"


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("activation_qkwargs={dtype: qint4}",),
        ("activation_qkwargs={qscheme: per_tensor_affine, dtype: quint6}",),
        ("activation_observer=percentile", "activation_qkwargs={percentile: 99}"),
        ("activation_observer=kl", "weight_observer=percentile"),
        ("activation_observer=mix", "weight_qkwargs={dtype: qint3}", "weight_fake_quant=lsq"),
    ],
)
def test_the_ranges_are_those_of_a_calibration_with_data(counted, settings):
    data, again = both(counted, *settings)
    assert qparams(again) == qparams(data)
    results = [json.loads((folder / "result.json").read_text()) for folder in (data, again)]
    assert results[0] == results[1]


@pytest.mark.parametrize("channels", [{}, {"qscheme": "per_channel_affine", "ch_axis": 1, "num_channels": 4}])
@pytest.mark.parametrize(("kind", "close"), [("percentile", 0), ("mse", 0), ("mix", 0), ("kl", 0)])
def test_long_streams_give_the_same_range_where_they_are_counted_in_the_same_bins(kind, close, channels):
    counted, direct, new = (OBSERVERS[name](dtype="qint6", **channels) for name in ("mse", kind, kind))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        batch = torch.randn(50_000, 4, generator=generator) ** 3
        counted(batch)
        direct(batch)
    new.solve_from(counted)
    torch.testing.assert_close(new.qparams().scale, direct.qparams().scale, rtol=close, atol=0)
    torch.testing.assert_close(new.qparams().zero_point, direct.qparams().zero_point, rtol=0, atol=close * 50)


def test_nothing_is_solved_from_an_observer_that_counted_nothing():
    with pytest.raises(NumericError):
        OBSERVERS["kl"]().solve_from(OBSERVERS["mse"]())


def test_another_observer_gives_another_range(counted):
    _, again = both(counted, "activation_observer=percentile", "activation_qkwargs={percentile: 60}")
    assert qparams(again) != qparams(counted.path / "counted")


def test_what_is_recalculated_can_be_evaluated_and_trained_from(counted):
    both(counted, "activation_observer=percentile")
    report = json.loads(
        counted.run("eval", "model.py", "again", "--no-integer", "--format", "json", "-q").out
    )
    assert (
        report["result"]["metrics"] == json.loads((counted.path / "again/result.json").read_text())["metrics"]
    )
    assert counted.run("qat", "model.py", "config.yaml", "--from", "again", "-o", "qat", "-q").code == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "activation_observer=min_max",
            "input.x: statistics of MSEObserver do not tell the range of MinMaxObserver",
        ),
        (
            "activation_qkwargs={averaging_constant: 0.1}",
            "input.x: ranges of single batches were averaged, which keeps no histogram",
        ),
        (
            "weight_qkwargs={qscheme: per_tensor_symmetric}",
            "conv.weight: the statistics are those of other channels",
        ),
    ],
)
def test_statistics_that_do_not_tell_the_range_are_refused(counted, setting, message):
    done = counted.run(*CALIB, "-o", "again", "-q", "--from", "counted", "--set", f"qconfig.global.{setting}")
    assert (done.code, done.err) == (6, f"error: {message}\nhint: calibrate with data\n")
    assert counted.names("again") == []


@pytest.mark.parametrize("kind", ["min_max", "clip", "clip_std", "fixed_scale"])
def test_kinds_without_a_histogram_move_to_another_grid(project, kind):
    more = ", scale: 0.02" if kind == "fixed_scale" else ""
    observer = f"activation_observer: {kind}, activation_qkwargs: {{dtype: qint8{more}}}"
    project.write("config.yaml", f"version: 1\nqconfig: {{global: {{{observer}}}}}")
    assert project.run(*CALIB, "-o", "counted", "-q").code == 0
    data, again = both(project, "activation_qkwargs.dtype=qint5", "weight_qkwargs={dtype: qint3}")
    assert qparams(again) == qparams(data)
    assert qparams(again) != qparams(project.path / "counted")


def test_other_parameters_of_a_kind_without_a_histogram_are_refused(project):
    project.write("config.yaml", "version: 1\nqconfig: {global: {activation_observer: clip_std}}")
    assert project.run(*CALIB, "-o", "counted", "-q").code == 0
    change = ("--set", "qconfig.global.activation_qkwargs={std_scale: 2}")
    done = project.run(*CALIB, "-o", "again", "-q", "--from", "counted", *change)
    assert done.code == 6
    assert done.err.startswith("error: input.x: its observer has other parameters: ")


def test_an_op_that_was_not_calibrated_is_refused(counted):
    counted.run(*CALIB, "-o", "counted", "-q", "--force", "--set", "qconfig.module_name.classifier=null")
    done = counted.run(*CALIB, "-o", "again", "-q", "--from", "counted")
    assert done.code == 6
    assert done.err.splitlines()[0].endswith("were not calibrated: classifier.weight, classifier.output")


def test_other_weights_and_other_stages_are_refused(counted):
    assert counted.run("qat", "model.py", "config.yaml", "-o", "trained", "-q").code == 0
    done = counted.run(*CALIB, "-o", "again", "-q", "--from", "trained")
    assert (done.code, done.err) == (
        2,
        "error: 'trained' is a qat run; --from takes a calibration run\n",
    )
    counted.model("def build_model():\n    torch.manual_seed(1)\n    return Net()\n")
    done = counted.run(*CALIB, "-o", "again", "-q", "--from", "counted")
    assert (done.code, done.err) == (
        2,
        "error: 'counted' was calibrated with other float weights\n",
    )
