"""The model file: every way in which it can fail has its own sentence and the user's own line."""

import os
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import quantcfg
from quantcfg.errors import QuantcfgWarning, UsageError, UserCodeError
from quantcfg.stages.model_file import load_model_file
from quantcfg.stages.user_code import is_users


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write ``model.py`` into an empty directory, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])

    def write_model(source):
        (tmp_path / "model.py").write_text(textwrap.dedent(source))
        return "model.py"

    yield write_model
    for name in [
        n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(f"{tmp_path}/")
    ]:
        del sys.modules[name]


def failure(call):
    with pytest.raises((UserCodeError, UsageError)) as caught:
        call()
    error = caught.value
    where = getattr(error, "where", "").replace(f"{Path.cwd()}/", "")
    return f"{where}|{error.message}|{error.hint}"


def test_a_model_is_built_by_default_or_by_the_named_attribute(write):
    reference = write("""
        from torch import nn
        def build_model():
            return nn.Linear(2, 3)
        def small():
            return nn.Linear(1, 1)
        ready = nn.ReLU()
    """)
    assert load_model_file(reference).build_model().out_features == 3
    assert load_model_file(f"{reference}:small").build_model().out_features == 1
    assert isinstance(load_model_file(f"{reference}:ready").build_model(), nn.ReLU)


def test_a_module_is_named_with_dots(write, tmp_path):
    source = write("from torch import nn\ndef build_model():\n    return nn.ReLU()\n")
    (tmp_path / source).rename(tmp_path / "named_with_dots.py")  # `model` may be another test's by now
    assert isinstance(load_model_file("named_with_dots").build_model(), nn.ReLU)
    assert isinstance(load_model_file("torch.nn:Identity").build_model(), nn.Identity)


def test_files_beside_the_model_file_can_be_imported(write, tmp_path):
    (tmp_path / "layers_beside.py").write_text("from torch import nn\nBlock = nn.Tanh\n")
    reference = write("from layers_beside import Block\ndef build_model():\n    return Block()\n")
    assert isinstance(load_model_file(reference).build_model(), nn.Tanh)


def test_a_missing_file_names_the_nearest_one(write):
    write("")
    assert failure(lambda: load_model_file("modle.py")) == (
        "|the model file 'modle.py' does not exist|did you mean 'model.py'?"
    )


def test_a_directory_is_no_model_file(tmp_path):
    assert failure(lambda: load_model_file(f"{tmp_path}/")) == (
        f"|the model file '{tmp_path}' is a directory|name a file: path/to/model.py"
    )


def test_a_missing_module_is_a_usage_error(write):
    write("")
    assert failure(lambda: load_model_file("nowhere.at.all:build")) == (
        "|there is no module 'nowhere.at.all'|a file is named with its .py"
    )


def test_an_import_that_raises_names_the_users_line(write):
    reference = write("""
        import torch
        import no_such_package
    """)
    assert failure(lambda: load_model_file(reference)) == (
        "model.py:3|importing the model file raised ModuleNotFoundError: No module named 'no_such_package'|"
    )


def test_the_innermost_line_of_the_user_is_named_not_one_of_torch(write):
    reference = write("""
        import torch
        def helper():
            return torch.zeros(2) @ torch.zeros(3)
        helper()
    """)
    assert failure(lambda: load_model_file(reference)).startswith(
        "model.py:4|importing the model file raised RuntimeError: inconsistent tensor size"
    )


def test_a_syntax_error_names_its_line(write):
    reference = write("x = 1\ndef build_model(:\n")
    assert failure(lambda: load_model_file(reference)) == (
        "model.py:2|importing the model file raised SyntaxError: invalid syntax|"
    )


def test_sys_exit_in_the_users_code_does_not_end_the_program_silently(write):
    reference = write("import sys\nsys.exit(3)\n")
    assert (
        failure(lambda: load_model_file(reference))
        == "model.py:2|importing the model file called sys.exit(3)|"
    )


def test_a_missing_function_suggests_the_nearest_name(write):
    reference = write("def build_modle():\n    pass\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantcfgWarning)
        model_file = load_model_file(reference)
    assert failure(model_file.build_model) == "|model.py has no 'build_model'|did you mean 'build_modle'?"
    assert failure(lambda: model_file.data("calib_data")) == (
        "|model.py has no 'calib_data'|define 'def calib_data() -> Iterable[Batch]'"
    )


def test_a_misspelt_optional_function_is_not_passed_over_in_silence(write):
    reference = write("def build_model(): ...\ndef eval_dta(): ...\n")
    with pytest.warns(QuantcfgWarning) as caught:
        load_model_file(reference)
    assert [str(w.message) for w in caught] == [
        "model.py has 'eval_dta', which has no meaning here; did you mean 'eval_data'?"
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "build_model = 3",
            "|'build_model' in model.py is a value of type int, not a function|define 'def build_model()",
        ),
        (
            "def build_model():\n    return nn.Linear",
            "model.py:3|build_model() returned the class Linear, not a torch.nn.Module|",
        ),
        (
            "def build_model(size):\n    return None",
            "model.py:3|build_model() raised TypeError: build_model() missing 1 required positional",
        ),
        (
            "def build_model():\n    return nn.Linear(2, 'x')",
            "model.py:4|build_model() raised TypeError: ",
        ),
    ],
)
def test_a_wrong_build_model_is_described(write, body, expected):
    reference = write(f"import torch\nfrom torch import nn\n{body}\n")
    assert failure(load_model_file(reference).build_model).startswith(expected)


def test_data_that_is_no_iterable_is_refused(write):
    reference = write("def build_model(): ...\ndef calib_data():\n    return 5\n")
    assert failure(lambda: load_model_file(reference).data("calib_data")) == (
        "model.py:2|calib_data() returned a value of type int, not an iterable of batches|"
    )


def test_a_loss_that_is_no_scalar_is_refused(write):
    reference = write("def build_model(): ...\ndef loss(outputs, batch):\n    return outputs\n")
    assert failure(lambda: load_model_file(reference).loss(torch.ones(2, 3), None)) == (
        "model.py:2|loss() returned a tensor of shape (2, 3), not a scalar tensor|"
    )


def test_without_a_loss_cross_entropy_must_be_obvious(write):
    reference = write("def build_model(): ...\n")
    model_file = load_model_file(reference)
    loss = model_file.loss(torch.zeros(4, 2), (torch.ones(4, 1), torch.tensor([0, 1, 0, 1])))
    assert loss.item() == pytest.approx(0.6931, abs=1e-4)
    assert failure(lambda: model_file.loss(torch.zeros(4, 2), (torch.ones(4), torch.zeros(4, 2)))) == (
        "|model.py has no 'loss', and the targets do not make cross-entropy the obvious choice|"
        "define 'def loss(outputs, batch) -> Tensor'"
    )
    assert failure(lambda: model_file.loss(None, (torch.ones(4), torch.zeros(4)))) == (
        "|model.py has no 'loss', and the model returned a value of type NoneType|"
        "define 'def loss(outputs, batch) -> Tensor'"
    )


def test_a_lazy_model_has_to_be_run_first(write):
    reference = write(
        "from torch import nn\ndef build_model():\n    return nn.Sequential(nn.LazyLinear(3))\n"
    )
    assert failure(load_model_file(reference).build_model) == (
        "model.py:2|what build_model() returned has no values: '0.weight' waits for the first batch|"
        "run the model once on a batch before it is returned"
    )


def test_an_optimizer_must_be_one(write):
    reference = write("def build_model(): ...\ndef optimizer(model):\n    return 'SGD'\n")
    assert failure(lambda: load_model_file(reference).optimizer(nn.Linear(1, 1))) == (
        "model.py:2|optimizer() returned a value of type str, not a torch.optim.Optimizer|"
    )


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            "SGD(nn.Linear(1, 1).parameters(), lr=0.1)",
            "optimizer() gave an optimizer without a parameter of the model|"
            "take those of the model that is given to it: it is not the one of build_model()",
        ),
        (
            "LBFGS(model.parameters())",
            "optimizer() gave an LBFGS, whose steps run the model several times|"
            "take one that steps with the gradients there are, as SGD and Adam do",
        ),
    ],
)
def test_an_optimizer_that_could_not_train_the_model_is_refused(write, made, message):
    source = f"from torch import nn\nfrom torch.optim import *\ndef optimizer(model):\n    return {made}\n"
    model_file = load_model_file(write(source))
    assert failure(lambda: model_file.optimizer(nn.Linear(1, 1))) == f"model.py:3|{message}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def __init__(self):\n        self.size = 3",
            "is no whole torch.nn.Module: 'Net' object has no attribute '_parameters'|"
            "its __init__ has to call super().__init__(), and it has to be hashable",
        ),
        (
            "def __eq__(self, other):\n        return True",
            "is no whole torch.nn.Module: unhashable type: 'Net'|"
            "its __init__ has to call super().__init__(), and it has to be hashable",
        ),
        (
            "def get_extra_state(self):\n        return 3",
            "has a value of type int in its state_dict: '_extra_state'|"
            "only tensors can be saved: quantize a float model, whose modules have no extra state",
        ),
    ],
)
def test_a_module_that_cannot_be_worked_with_is_refused(write, body, message):
    net = f"class Net(nn.Module):\n    {body}\n"
    reference = write(f"from torch import nn\n{net}def build_model():\n    return Net()\n")
    model_file = load_model_file(reference)
    assert failure(model_file.build_model) == f"model.py:5|what build_model() returned {message}"


@pytest.mark.parametrize(
    ("file", "is_the_users"),
    [
        ("/home/me/model.py", True),
        ("/opt/other/lib/python3/site-packages/torch/nn/modules/conv.py", False),
        ("/usr/lib/python3/dist-packages/torch/nn/modules/conv.py", False),
        (os.__file__, False),
        (quantcfg.__file__, False),
        ("<string>", False),
    ],
)
def test_whose_a_source_file_is(file, is_the_users):
    assert is_users(file) is is_the_users
