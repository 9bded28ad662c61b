"""The user's model file: loading it, and telling apart the ways in which that can fail."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from quantcfg.config.suggest import distance, nearest
from quantcfg.errors import QuantcfgWarning, UsageError, UserCodeError
from quantcfg.stages import batches
from quantcfg.stages.user_code import place_of, user_code

FUNCTIONS = {
    "build_model": "def build_model() -> nn.Module",
    "calib_data": "def calib_data() -> Iterable[Batch]",
    "train_data": "def train_data() -> Iterable[Batch]",
    "eval_data": "def eval_data() -> Iterable[Batch]",
    "forward": "def forward(model, batch) -> Any",
    "loss": "def loss(outputs, batch) -> Tensor",
    "evaluate": "def evaluate(model, data) -> dict[str, float]",
    "example_inputs": "def example_inputs() -> tuple | dict",
    "optimizer": "def optimizer(model) -> Optimizer",
    "shard": "def shard(model, mesh) -> None",
}


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A loaded model file. ``builder`` builds the model; ``shown`` is the file as the user typed it."""

    module: ModuleType
    shown: str
    builder: str = "build_model"

    def has(self, name: str) -> bool:
        """Whether the file defines the function ``name``."""
        return name in vars(self.module)

    def function(self, name: str) -> Callable[..., Any]:
        """The function ``name``.

        Raises:
            UserCodeError: it is missing, or is no function.
        """
        if not self.has(name):
            raise UserCodeError(f"{self.shown} has no '{name}'", hint=self._hint(name))
        function = getattr(self.module, name)
        if not callable(function):
            message = f"'{name}' in {self.shown} is {_kind(function)}, not a function"
            raise UserCodeError(message, hint=self._hint(name))
        return function  # type: ignore[no-any-return]

    def build_model(self) -> nn.Module:
        """The float model that the file builds."""
        if isinstance(model := getattr(self.module, self.builder, None), nn.Module):
            _require_values(model, f"'{self.builder}' in {self.shown}", "")
            return model
        where, model = place_of(self.function(self.builder)), self._call(self.builder)
        if not isinstance(model, nn.Module):
            raise UserCodeError(
                f"{self.builder}() returned {_kind(model)}, not a torch.nn.Module", where=where
            )
        _require_values(model, f"what {self.builder}() returned", where)
        return model

    def data(self, name: str) -> Iterable[Any]:
        """What the data function ``name`` returns: something to iterate over."""
        data = self._call(name)
        if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
            raise UserCodeError(
                f"{name}() returned {_kind(data)}, not an iterable of batches",
                where=place_of(self.function(name)),
            )
        return data  # type: ignore[no-any-return]

    @property
    def forward(self) -> Callable[[nn.Module, Any], Any]:
        """Runs the model on a batch, as the file says or as `batches.forward` does."""
        return self.module.forward if self.has("forward") else batches.forward

    @property
    def loss(self) -> Callable[[Any, Any], Tensor]:
        """Gives the scalar to minimise, of outputs and batch.

        Raises:
            UserCodeError: there is no loss function and the targets make none obvious, or it gave no scalar.
        """
        return self._own_loss if self.has("loss") else self._default_loss

    def _own_loss(self, outputs: Any, batch: Any) -> Tensor:
        loss = self.function("loss")(outputs, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise UserCodeError(
                f"loss() returned {_kind(loss)}, not a scalar tensor", where=place_of(self.function("loss"))
            )
        return loss.reshape(())

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer that the file's ``optimizer(model)`` makes."""
        optimizer = self._call("optimizer", model)
        where = place_of(self.function("optimizer"))
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserCodeError(
                f"optimizer() returned {_kind(optimizer)}, not a torch.optim.Optimizer", where=where
            )
        own = {id(parameter) for parameter in model.parameters()}
        if not any(id(held) in own for group in optimizer.param_groups for held in group["params"]):
            raise UserCodeError(
                "optimizer() gave an optimizer without a parameter of the model",
                hint="take those of the model that is given to it: it is not the one of build_model()",
                where=where,
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UserCodeError(
                "optimizer() gave an LBFGS, whose steps run the model several times",
                hint="take one that steps with the gradients there are, as SGD and Adam do",
                where=where,
            )
        return optimizer

    def example_inputs(self) -> Any:
        """What ``example_inputs()`` returns: a tuple, a dict or a tensor."""
        inputs = self._call("example_inputs")
        if batches.first_tensor(inputs) is None:
            where = place_of(self.function("example_inputs"))
            raise UserCodeError(f"example_inputs() returned {_kind(inputs)}, without a tensor", where=where)
        return inputs

    def _call(self, name: str, *args: Any) -> Any:
        function = self.function(name)
        with user_code(f"{name}()", function):
            return function(*args)

    def _default_loss(self, outputs: Any, batch: Any) -> Tensor:
        loss = batches.default_loss(outputs, batch)
        if loss is None:
            raise self.undecided("loss", outputs, "cross-entropy the obvious choice")
        return loss

    def undecided(self, name: str, outputs: Any, choice: str) -> UserCodeError:
        """What is wrong where ``name`` is missing, and outputs and targets do not make the ``choice``."""
        decides = batches.first_tensor(outputs) is not None
        why = f"the targets do not make {choice}" if decides else f"the model returned {_kind(outputs)}"
        return UserCodeError(f"{self.shown} has no '{name}', and {why}", hint=f"define '{FUNCTIONS[name]}'")

    def _hint(self, name: str) -> str:
        others = [n for n in vars(self.module) if n != name and not n.startswith("_")]
        near = nearest(name, others)
        return f"did you mean '{near}'?" if near else f"define '{FUNCTIONS.get(name, f'def {name}()')}'"


def load_model_file(reference: str) -> ModelFile:
    """Import ``path/to/model.py[:attr]`` or ``package.module[:attr]``; ``attr`` builds the model.

    Raises:
        UsageError: there is no such file or module.
        UserCodeError: importing it raised.
    """
    source, _, attribute = reference.partition(":")
    if source.endswith(".py") or "/" in source:
        model_file = ModelFile(_import_path(Path(source)), source, attribute or "build_model")
    else:
        model_file = ModelFile(_import_name(source), source, attribute or "build_model")
    _warn_of_near_names(model_file)
    return model_file


def _import_path(path: Path) -> ModuleType:
    _require_file(path)
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path.absolute())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _put_on_path(path.absolute().parent)
    sys.modules[name] = module
    try:
        with user_code("importing the model file"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise UsageError(f"the model file '{path}' is a directory", hint="name a file: path/to/model.py")
    beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    near = nearest(path.name, beside)
    hint = f"did you mean '{path.with_name(near)}'?" if near else ""
    raise UsageError(f"the model file '{path}' does not exist", hint=hint)


def _module_name(path: Path) -> str:
    """The file's own name, under which worker processes find it too, unless something else has that name."""
    loaded = sys.modules.get(path.stem)
    if loaded is not None:
        origin = getattr(loaded, "__file__", None)
    else:
        spec = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
        origin = spec.origin if spec else str(path.absolute())
    return path.stem if origin == str(path.absolute()) else f"quantcfg_model_{path.stem}"


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import_name(name: str) -> ModuleType:
    _put_on_path(Path.cwd())
    with user_code(f"importing {name}"):
        try:
            found = importlib.util.find_spec(name)
        except (ModuleNotFoundError, ValueError):  # a parent package is missing, or the name is no name
            found = None
        if found is not None:
            return importlib.import_module(name)
    hint = f"did you mean '{name}.py'?" if Path(f"{name}.py").is_file() else "a file is named with its .py"
    raise UsageError(f"there is no module '{name}'", hint=hint)


def _warn_of_near_names(model_file: ModelFile) -> None:
    """A misspelt optional function would otherwise be passed over without a word."""
    own = [n for n, v in vars(model_file.module).items() if callable(v) and not n.startswith("_")]
    others = [n for n in own if n not in FUNCTIONS and n != model_file.builder]
    for name in FUNCTIONS:
        near = [] if model_file.has(name) else [other for other in others if distance(other, name, 1) == 1]
        if near:
            warnings.warn(
                f"{model_file.shown} has '{near[0]}', which has no meaning here; did you mean '{name}'?",
                QuantcfgWarning,
                stacklevel=3,
            )


def _require_values(model: nn.Module, what: str, where: str) -> None:
    try:
        state = [*model.named_parameters(), *model.named_buffers()]
    except (AttributeError, TypeError) as error:  # torch's own: without its __init__ a module lacks the lists
        raise UserCodeError(
            f"{what} is no whole torch.nn.Module: {error}",
            hint="its __init__ has to call super().__init__(), and it has to be hashable",
            where=where,
        ) from error
    late = [name for name, tensor in state if is_lazy(tensor)]
    if late:
        raise UserCodeError(
            f"{what} has no values: '{late[0]}' waits for the first batch",
            hint="run the model once on a batch before it is returned",
            where=where,
        )
    empty = [name for name, tensor in state if tensor.is_meta]
    if empty:
        raise UserCodeError(
            f"{what} has no values: '{empty[0]}' is on the meta device",
            hint="build it on the CPU, or give it memory by to_empty(device='cpu') and then its weights",
            where=where,
        )
    odd = [(name, value) for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if odd:
        name, value = odd[0]
        raise UserCodeError(
            f"{what} has {_kind(value)} in its state_dict: '{name}'",
            hint="only tensors can be saved: quantize a float model, whose modules have no extra state",
            where=where,
        )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return (
        f"the class {value.__name__}"
        if isinstance(value, type)
        else f"a value of type {type(value).__name__}"
    )
