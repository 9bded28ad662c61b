"""What every stage works with: the user's model and data, the config, seed, device and who watches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantcfg.config.load import Config
from quantcfg.errors import UsageError, UserCodeError
from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import fake_quants, plan_of
from quantcfg.stages.batches import to_device
from quantcfg.stages.data import DataSource
from quantcfg.stages.model_file import FUNCTIONS, ModelFile
from quantcfg.stages.progress import Progress, Silence
from quantcfg.stages.ranks import ALONE, Ranks
from quantcfg.stages.seeding import derive_seed, seed_all
from quantcfg.stages.signals import resume_command
from quantcfg.stages.user_code import in_batch, user_code

_DEVICES = "auto, cpu, cuda or cuda:N"
_RECORDED_ON = ("calib_data", "train_data", "eval_data")


@dataclass(frozen=True, slots=True)
class Job:
    """One command's worth of work, by one process or by several ``ranks``.

    ``command`` is what the user typed, for messages and the manifest, and ``directory`` where: their code may
    leave it.
    """

    model_file: ModelFile
    config: Config
    seed: int
    device: torch.device
    progress: Progress
    command: tuple[str, ...] = ()
    ranks: Ranks = ALONE
    directory: Path = field(default_factory=Path.cwd)
    _sources: dict[str, DataSource] = field(default_factory=dict, init=False)

    def source(self, name: str) -> DataSource:
        """The data function ``name`` of the model file, the same object at each call."""
        if name not in self._sources:
            self._sources[name] = DataSource(self.model_file, name, self.seed, self.device, self.ranks)
        return self._sources[name]

    @property
    def used_sources(self) -> list[DataSource]:
        """The data functions that something asked for, in the order of their names."""
        return [self._sources[name] for name in sorted(self._sources)]

    def required_source(self, name: str) -> DataSource:
        """Like `source`, and sure to exist.

        Raises:
            UserCodeError: the model file has no such function.
        """
        self.model_file.function(name)
        return self.source(name)

    def build_model(self) -> nn.Module:
        """The float model in eval mode, on the device; every rank has the weights of the first one."""
        seed_all(derive_seed(self.seed, "build_model"))
        model = self.model_file.build_model()
        builder = getattr(self.model_file.module, self.model_file.builder)
        with user_code(f"moving the model to {self.device}", builder):
            model = model.to(self.device).eval()
        parts = [f"{name} {tuple(tensor.shape)}" for name, tensor in model.state_dict().items()]
        self._require_alike("build_model() builds", parts)
        self.ranks.share_state(model)
        return model

    def prepare(self, float_model: nn.Module, stage: str) -> nn.Module:
        """A prepared copy of ``float_model``, recorded on the example inputs or the first batch there is."""
        model = self._prepared(float_model, stage)
        self._require_alike("the example inputs make", [f"{k} {v}" for k, v in fake_quants(model).items()])
        for finding in plan_of(model).findings:
            self.progress.note(str(finding))
        if stage == "calib":
            for fake_quant in fake_quants(model).values():
                fake_quant.observer.nonfinite = self.config.calib.nonfinite
        return model

    def _prepared(self, float_model: nn.Module, stage: str) -> nn.Module:
        seed_all(derive_seed(self.seed, "prepare"))
        bn = self.config.qat.bn if stage == "qat" else "fold"
        if self.model_file.has("example_inputs"):
            inputs = self._example_inputs()
            with user_code("the model, on example_inputs(),"):
                return prepare(float_model, self.config, example_inputs=inputs, stage=stage, bn=bn)
        name, batch = self._first_batch()

        def run(model: nn.Module) -> Any:
            with in_batch(name, 0):
                return self.model_file.forward(model, batch)

        return prepare(float_model, self.config, forward=run, stage=stage, bn=bn)

    def _example_inputs(self) -> Any:
        inputs = self.model_file.example_inputs()
        with user_code(
            f"moving example_inputs() to {self.device}", self.model_file.function("example_inputs")
        ):
            return to_device(inputs, self.device)

    def _require_alike(self, maker: str, parts: Sequence[str]) -> None:
        """Refuse models that differ by rank, before a collective waits for a part that others do not have."""
        if (odd := self.ranks.odd_one("\n".join(parts).encode())) is None:
            return
        with self.ranks.alike():
            raise UserCodeError(
                f"{maker} another model on rank {odd} than on rank 0",
                hint="what a model is made of must not depend on the rank, the machine or chance",
            )

    def _first_batch(self) -> tuple[str, Any]:
        name = next((name for name in _RECORDED_ON if self.model_file.has(name)), None)
        if name is None:
            raise UserCodeError(
                f"{self.model_file.shown} has no data and no 'example_inputs' to run the model on",
                hint=f"define '{FUNCTIONS['calib_data']}' or '{FUNCTIONS['example_inputs']}'",
            )
        for _, batch in self.source(name).batches(limit=1):
            return name, batch
        raise AssertionError("a source without batches raises")

    def alone(self) -> Job:
        """The same work by this process, without the other ranks."""
        return replace(self, ranks=ALONE)

    def with_config(self, config: Config) -> Job:
        """The same work under another config, on the same data."""
        job = replace(self, config=config)
        job._sources.update(self._sources)
        return job

    def quietly(self) -> Job:
        """The same work without a word to the user."""
        job = replace(self, progress=Silence())
        job._sources.update(self._sources)
        return job

    @property
    def resume_command(self) -> str:
        """The command that goes on with this run."""
        return resume_command(self.command)


def choose_device(name: str) -> torch.device:
    """The device that ``name`` means; ``auto`` is a GPU when there is one.

    Raises:
        UsageError: no such device here, or none that works; the message has torch's reason.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with warnings.catch_warnings(action="ignore"):  # of names that torch knows and has no device for
            device = torch.device(name)
    except RuntimeError as error:  # torch has no error of its own for this
        raise UsageError(f"'{name}' names no device", hint=_DEVICES) from error
    if device.type == "meta":
        raise UsageError("tensors on the device 'meta' have no values", hint=_DEVICES)
    try:
        torch.empty(0, device=device)
    except NotImplementedError as error:
        raise UsageError(f"this torch is built without '{name}'", hint=_DEVICES) from error
    except Exception as error:  # each backend raises what it likes: a driver's error, a missing module
        reason = str(error).partition("\n")[0]
        if "INTERNAL ASSERT" in reason:
            raise UsageError(f"torch computes on no '{name}'", hint=_DEVICES) from error
        raise UsageError(f"there is no device '{name}' here: {reason}", hint=_DEVICES) from error
    return device
