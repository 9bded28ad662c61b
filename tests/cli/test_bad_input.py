"""Bad input: one message that names the place, the exit code, no traceback, nothing left behind."""

import re

import pytest

from quantcfg.cli.main import main
from quantcfg.errors import UsageError
from quantcfg.stages.job import choose_device


def refused(project, *arguments):
    """Exit code and stderr of a command that must fail before it writes anything."""
    done = project.run(*(arguments or ("calib", "model.py", "config.yaml", "-o", "run", "-q")))
    assert "Traceback" not in done.err
    assert done.out == ""
    assert project.names("run") == []
    return done.code, done.err


def failed_run(project, command="calib"):
    """Exit code and stderr of a run that fails after it began: no result, no manifest, no torn file."""
    done = project.run(command, "model.py", "config.yaml", "-o", "run", "-q")
    assert "Traceback" not in done.err
    assert done.out == ""
    names = project.names("run")
    assert not {"result.json", "manifest.json", "timing.json"} & set(names)
    assert not [name for name in names if ".tmp-" in name or name.endswith(".lock")]
    return done.code, done.err


def test_a_missing_config(project):
    code, err = refused(project, "calib", "model.py", "nowhere.yaml", "-o", "run")
    assert code == 2
    assert err.startswith("error: ")
    assert "nowhere.yaml" in err


def test_a_missing_model_file(project):
    assert refused(project, "calib", "mode.py", "config.yaml", "-o", "run") == (
        2,
        "error: the model file 'mode.py' does not exist\nhint: did you mean 'model.py'?\n",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: 1\nqconfig: {global: w8a88}\n", "config.yaml:2:"),
        ("version: 1\nqconfgi: {}\n", "config.yaml:2:1"),
        ("version: 1\ncalib: {batches: many}\n", "config.yaml:2:"),
        ("version: [1\n", "config.yaml:"),
        (
            "version: 1\nqconfig: {global: {activation_observer: kl, activation_qkwargs: {percentile: 5}}}\n",
            "config.yaml:2:",
        ),
        ("version: 1\nqconfig: {global: w8a8, module_name: {convv: w8a8}}\n", "config.yaml:2:"),
    ],
)
def test_a_wrong_config_names_its_place(project, text, expected):
    project.write("config.yaml", text)
    code, err = refused(project)
    assert code == 1
    assert "error[QC" in err
    assert expected in err


def test_an_override_of_a_key_that_does_not_exist(project):
    code, err = refused(project, "calib", "model.py", "config.yaml", "-o", "run", "--set", "calib.batchs=3")
    assert code == 1
    assert "batchs" in err


def test_an_import_that_raises(project):
    project.model(base="import torch\n1 / 0\n")
    assert refused(project) == (
        5,
        "error: model.py:2: importing the model file raised ZeroDivisionError: division by zero\n",
    )


def test_no_build_model(project):
    project.model("del build_model")
    assert refused(project) == (
        5,
        "error: model.py has no 'build_model'\nhint: define 'def build_model() -> nn.Module'\n",
    )


def test_no_calibration_data(project):
    project.model("del calib_data")
    assert refused(project) == (
        5,
        "error: model.py has no 'calib_data'\nhint: define 'def calib_data() -> Iterable[Batch]'\n",
    )


def test_no_training_data(project):
    project.model("del train_data")
    code, err = refused(project, "qat", "model.py", "config.yaml", "-o", "run")
    assert (code, err.splitlines()[0]) == (5, "error: model.py has no 'train_data'")


def test_an_empty_loader(project):
    project.model("""
        def calib_data():
            return []
    """)
    assert refused(project) == (5, "error: model.py:41: calib_data() gave no batch\n")


def test_a_batch_that_the_model_refuses(project):
    project.model("""
        def calib_data():
            yield torch.ones(2, 1, 4, 4), torch.zeros(2).long()
            yield torch.ones(2, 3, 4, 4), torch.zeros(2).long()
    """)
    code, err = failed_run(project)
    assert code == 5
    assert err.startswith("error: model.py:15: the model, in batch 1 of calib_data(), raised RuntimeError: ")
    assert err.count("\n") == 1


def test_the_first_batch_is_refused_before_anything_is_written(project):
    project.model("""
        def calib_data():
            yield torch.ones(2, 3, 4, 4)
    """)
    code, err = refused(project)
    assert code == 5
    assert err.startswith("error: model.py:15: the model, in batch 0 of calib_data(), raised RuntimeError: ")


def test_data_that_raises_in_a_later_batch(project):
    project.model("""
        def calib_data():
            yield torch.ones(2, 1, 4, 4)
            raise ValueError("row 7 is torn")
    """)
    assert failed_run(project) == (
        5,
        "error: model.py:43: calib_data(), in batch 1, raised ValueError: row 7 is torn\n",
    )


def test_something_else_than_a_batch(project):
    project.model("""
        def calib_data():
            return ["text"]
    """)
    assert refused(project) == (
        5,
        "error: model.py:41: batch 0 of calib_data() is of type str and holds no tensor\n"
        "hint: a batch is a tensor, (inputs, targets), a dict of tensors or a dataclass of tensors\n",
    )


def test_nan_in_the_data(project):
    project.model("""
        def calib_data():
            yield torch.ones(2, 1, 4, 4)
            yield torch.full((2, 1, 4, 4), float("nan"))
    """)
    code, err = failed_run(project)
    assert code == 6
    assert "batch 1 of calib_data()" in err
    assert "NaN" in err


def test_nan_in_the_data_can_be_left_out(project):
    project.model("""
        def calib_data():
            yield torch.ones(2, 1, 4, 4)
            yield torch.full((2, 1, 4, 4), float("nan"))
    """)
    assert (
        project.run("calib", "model.py", "config.yaml", "-o", "run", "--set", "calib.nonfinite=skip").code
        == 0
    )


def test_a_loss_that_is_not_finite_stops_before_the_step(project):
    project.model("""
        def loss(outputs, batch):
            return outputs.sum() / 0
    """)
    code, err = failed_run(project, "qat")
    assert code == 6
    assert err.startswith("error: the loss is ")
    assert "in step 1 (epoch 1, batch 0); nothing was updated" in err


def test_a_gradient_that_is_not_finite_names_the_parameter(project):
    project.model("""
        def loss(outputs, batch):
            return (outputs.sum() * 0).sqrt()
    """)
    code, err = failed_run(project, "qat")
    assert code == 6
    assert err.startswith("error: the gradient of '")
    assert "is not finite in step 1 (epoch 1, batch 0); nothing was updated" in err


def test_sys_exit_in_the_forward(project):
    project.model("""
        def forward(model, batch):
            raise SystemExit(0)
    """)
    assert refused(project) == (
        5, "error: model.py:42: the model, in batch 0 of calib_data(), called sys.exit(0)\n"
    )  # fmt: skip


def test_names_with_control_characters_cannot_steer_the_terminal(project):
    project.model("""
        raise ValueError("\\x1b[31mred\\x1b[0m")
    """)
    code, err = refused(project)
    assert code == 5
    assert "\x1b" not in err
    assert "\\x1b[31mred" in err


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:77", "there is no device 'cuda:77' here: "),  # and torch's reason, which differs by machine
        ("hpu", "there is no device 'hpu' here: No module named "),
        ("vulkan", "this torch is built without 'vulkan'"),
        ("meta", "tensors on the device 'meta' have no values"),
        ("opengl", "torch computes on no 'opengl'"),
        ("gpu", "'gpu' names no device"),
        ("", "'' names no device"),
    ],
)
def test_a_device_that_is_not_there(project, device, said):
    code, err = refused(project, "calib", "model.py", "config.yaml", "-o", "run", "--device", device)
    assert code == 2
    assert err.startswith(f"error: {said}")
    assert err.endswith("\nhint: auto, cpu, cuda or cuda:N\n")
    assert err.count("\n") == 2


def test_what_a_driver_says_is_not_hidden(monkeypatch):
    def busy(*_, **__):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy\nCompile with ...")

    monkeypatch.setattr("torch.empty", busy)
    with pytest.raises(UsageError, match=r"'cuda:0' here: CUDA error: .* busy$"):
        choose_device("cuda:0")


CALIB_USAGE = "quantcfg calib [OPTIONS] {MODEL} {CONFIG}"


@pytest.mark.parametrize(
    ("arguments", "message", "usage"),
    [
        ("calib", "missing argument 'MODEL'", CALIB_USAGE),
        ("calib a b c", "got unexpected extra argument(s) (c)", CALIB_USAGE),
        ("calib a b --xyzzy", "no such option: --xyzzy", CALIB_USAGE),
        ("calib a b --format xml",
         "invalid value for '--format': 'xml' is not one of 'text', 'json'", CALIB_USAGE),
        ("export a b --format onx",
         "invalid value for '--format': 'onx' is not one of 'onnx', 'safetensors', 'pt2'",
         "quantcfg export [OPTIONS] {MODEL} {RUN}"),
        ("calib a b --set", "option '--set' requires an argument", "quantcfg calib"),
        ("calb", "no such command 'calb'. Did you mean 'calib'?", "quantcfg [OPTIONS] COMMAND [ARGS]..."),
        ("--nonsense", "no such option: --nonsense", "quantcfg [OPTIONS] COMMAND [ARGS]..."),
    ],
)  # fmt: skip
def test_a_wrong_command_line(project, arguments, message, usage):
    done = project.run(*arguments.split())
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {message}\nhint: {usage}; -h shows more\n"


def test_eval_of_what_is_no_run(project):
    (project.path / "empty").mkdir()
    assert refused(project, "eval", "model.py", "empty") == (
        2,
        "error: 'empty' is not a run directory\n"
        "hint: name what quantcfg calib or quantcfg qat wrote, such as runs/config-calib\n",
    )


def test_eval_of_a_run_that_was_changed(project):
    project.run("calib", "model.py", "config.yaml", "-o", "good", "-q")
    weights = project.path / "good/checkpoints/4/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    code, err = refused(project, "eval", "model.py", "good")
    assert (code, err) == (
        6,
        "error: 'good' does not match its manifest: 'model.safetensors' has other content\n",
    )


def test_eval_with_another_model(project):
    project.run("calib", "model.py", "config.yaml", "-o", "good", "-q")
    project.model("""
        def build_model():
            model = Net()
            model.classifier = nn.Linear(4, 7)
            return model
    """)
    code, err = refused(project, "eval", "model.py", "good")
    assert code == 6
    assert err.startswith("error: 'good' was made with another model: size mismatch for classifier.weight")


def test_a_run_directory_that_is_taken(project):
    project.run("calib", "model.py", "config.yaml", "-o", "good", "-q")
    assert refused(project, "calib", "model.py", "config.yaml", "-o", "good") == (
        2,
        "error: 'good' already holds a finished run\nhint: --force replaces it; -o names another directory\n",
    )


def test_from_takes_a_calibration_run(project):
    project.run("qat", "model.py", "config.yaml", "-o", "trained", "-q")
    assert refused(project, "qat", "model.py", "config.yaml", "--from", "trained", "-o", "run", "-q") == (
        2,
        "error: 'trained' is a qat run; --from takes a calibration run\n",
    )


def test_a_bug_of_ours_says_so(project, monkeypatch, capsys):
    monkeypatch.setattr("quantcfg.stages.job.derive_seed", None)
    code, err = refused(project)
    assert code == 7
    assert err.startswith(
        "error: a bug in quantcfg: TypeError: 'NoneType' object is not callable (at job.py:"
    )


@pytest.mark.parametrize("loss", ["torch.tensor(1.0)", "outputs.sum().detach()"])
def test_a_loss_that_trains_nothing_is_refused(project, loss):
    project.model(f"def loss(outputs, batch):\n    return {loss}\n")
    assert failed_run(project, "qat") == (
        5,
        "error: model.py:40: the loss depends on nothing that can be trained\n"
        "hint: requires_grad_(False), no_grad(), detach() and item() cut it off from the parameters\n",
    )


def test_a_mean_loss_that_is_not_finite_is_refused(project):
    project.model("""
        def loss(outputs, batch):
            return outputs.sum() * float("nan")
        def eval_data():
            return [(torch.ones(2, 1, 4, 4), torch.ones(2))]
    """)
    assert failed_run(project) == (
        6,
        "error: 'loss' of the float model is nan\n"
        "hint: look for NaN or inf in weights, outputs and data; leave out a metric without bounds\n",
    )


def test_debug_shows_the_users_traceback(project):
    project.model(base="import torch\n1 / 0\n")
    assert main(["calib", "model.py", "config.yaml", "-o", "run", "--debug"]) == 5
    err = project.capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "1 / 0" in err


def test_an_iterator_that_is_used_up_is_not_taken_for_data(project):
    project.model("""
        once = iter([torch.ones(2, 1, 4, 4)] * 3)
        def calib_data():
            return once
    """)
    assert failed_run(project) == (
        5,
        "error: model.py:42: calib_data() returned an iterator that it had returned before, "
        "which is used up by now\n"
        "hint: return a new iterator at each call, or something that can be iterated again\n",
    )


def test_a_worker_that_dies_is_told_from_a_bug(project):
    project.model("""
        import os
        class Rows(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, index):
                os._exit(3)
        def calib_data():
            return DataLoader(Rows(), batch_size=2, num_workers=1)
    """)
    code, err = refused(project)
    assert code == 5
    assert re.match(r"error: model\.py:\d+: a worker process of a DataLoader died: RuntimeError: Data", err)


def test_fewer_batches_than_asked_for_are_no_secret(project):
    done = project.run("calib", "model.py", "config.yaml", "-o", "run", "--set", "calib.batches=40")
    assert "note: calib_data() had 6 batches; calib.batches asks for 40\n" in done.err


def test_data_without_a_length_is_said_to_be_used_whole(project):
    project.model("""
        def calib_data():
            yield torch.ones(2, 1, 4, 4)
    """)
    done = project.run("calib", "model.py", "config.yaml", "-o", "run", "--set", "calib.batches=null")
    assert "note: calib_data() has no length, and all of it is used; calib.batches limits it\n" in done.err


def test_skipped_batches_are_counted_in_the_report(project):
    project.model("""
        def calib_data():
            yield torch.ones(2, 1, 4, 4)
            yield torch.full((2, 1, 4, 4), float("nan"))
    """)
    done = project.run("calib", "model.py", "config.yaml", "-o", "run", "--set", "calib.nonfinite=skip")
    assert "skipped   up to 1 batch with NaN or inf, by input.x" in done.out


@pytest.mark.parametrize(
    "more",
    [
        "import os\nos.chdir('/')\n",
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n",
        "import sys\nsys.stdout.write('noise')\n",
        "def calib_data():\n    while True:\n        yield torch.ones(1, 1, 4, 4)\n",
        "def calib_data():\n    return ((torch.ones(2, 1, 4, 4), None) for _ in range(9))\n",
        "torch.set_grad_enabled(False)\n",
    ],
)
def test_odd_user_code_that_works(project, more):
    project.model(more)
    try:
        done = project.run("calib", "model.py", "config.yaml", "-o", "run", "-q", "--format", "json")
    finally:
        import torch

        torch.set_grad_enabled(True)
    assert (done.code, done.out[:1]) == (0, "{")
    assert (project.path / "run/result.json").exists()
