"""What the qat stage's loop adds to a hand-written one, and how long a checkpoint stops it.

    python -m benchmarks.loop [--epochs N] [--rounds N] [--threads N] [--apart]

The demo is trained by `quantcfg qat`. After each of its steps the hand-written loop makes one, of the same
model, loader, optimizer and average of the weights: what slows the machine slows both. Where a model lies in
memory moves a step by a percent either way, and two of them push each other out of the caches. So both loops
train one and the same (but `--apart`), each with an optimizer and an average of its own. The hand-written
loop first takes turns with itself, which shows how far off that is.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from quantcfg.config.load import load_config
from quantcfg.runs.directory import open_run
from quantcfg.stages import qat
from quantcfg.stages.job import Job
from quantcfg.stages.model_file import load_model_file
from quantcfg.stages.pauses import Pauses
from quantcfg.stages.progress import Progress, Silence, Task
from quantcfg.stages.training import Trainer, enter_phase

ROOT = Path(__file__).resolve().parents[1]
MODEL, CONFIG = ROOT / "examples/digits/model.py", ROOT / "configs/digits_w4a4.yaml"
LOOP = 1.03  # times the hand-written loop
WARM_UP = 40  # steps
NULL_STEPS = 200


@dataclass
class InTurn(Silence):
    """A progress that makes a step of another loop after each of the stage's, and times both."""

    is_apart: bool
    stage: list[float] = field(default_factory=list)
    hand: list[float] = field(default_factory=list)
    itself: float = 0.0  # what the hand-written loop adds to itself
    saves: list[float] = field(default_factory=list)
    other: Iterator[float] = field(init=False)
    last: float = 0.0
    is_training: bool = False

    @contextmanager
    def task(self, title: str, total: int | None, *, done: int = 0, unit: str = "batch") -> Iterator[InTurn]:
        del total, done, unit
        before, self.is_training = self.is_training, title == "training"
        self.last = time.perf_counter()
        yield self
        self.is_training = before

    def train(self, run: Callable[[Trainer, Task], None], trainer: Trainer, task: Task) -> None:
        """Train by ``run``, what `Trainer.run` is; before that, by the hand-written loop in its place."""
        enter_phase(trainer.job, trainer.model, 0)
        model = copy.deepcopy(trainer.model) if self.is_apart else trainer.model
        self.other = hand_written(trainer.job, model)
        for _ in islice(hand_written(trainer.job, trainer.model), NULL_STEPS):
            self.advance()
        self.itself = self.added()
        self.stage.clear()
        self.hand.clear()
        run(trainer, task)

    def save(self, save: Callable[..., None], *arguments: object) -> None:
        """Save by ``save``, what `Pauses._save` is, and time it."""
        began = time.perf_counter()
        save(*arguments)
        self.saves.append(time.perf_counter() - began)

    def step(self) -> float:
        """The median time of a hand-written step."""
        return statistics.median(self.hand[WARM_UP:])

    def added(self) -> float:
        """The median of what a step takes longer than the hand-written one after it."""
        pairs = zip(self.stage[WARM_UP:], self.hand[WARM_UP:], strict=True)
        return statistics.median(stage - hand for stage, hand in pairs)

    def advance(self, **values: float) -> None:
        del values
        if not self.is_training:
            return
        now = time.perf_counter()
        self.stage.append(now - self.last)
        next(self.other)
        self.hand.append(time.perf_counter() - now)
        self.last = time.perf_counter()


def job_with(progress: Progress, epochs: int) -> Job:
    config = load_config(CONFIG, overrides=[f"qat.epochs={epochs}"])
    return Job(load_model_file(str(MODEL)), config, seed=0, device=torch.device("cpu"), progress=progress)


def hand_written(job: Job, model: nn.Module) -> Iterator[float]:
    """The loop of a tutorial, over a model in training: the loss of each step.

    It has what the config asks for, and nothing that a run has beside it: no check that loss and gradients
    are finite, no seed for each batch, no log, no place in an error, nothing that can be saved or stopped.
    """
    loader = job.model_file.module.train_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, job.config.qat.epochs * len(loader))
    weights = list(model.parameters())
    average = [weight.detach().clone() for weight in weights]
    while True:
        for images, labels in loader:
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, weights, 1 - job.config.qat.ema)
            yield loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--apart", action="store_true", help="a second model for the hand-written loop")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report([one_round(options.epochs, InTurn(options.apart)) for _ in range(options.rounds)])


def one_round(epochs: int, turns: InTurn) -> InTurn:
    run, save = Trainer.run, Pauses._save
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Trainer, "run", lambda *arguments: turns.train(run, *arguments)),
        mock.patch.object(Pauses, "_save", lambda *arguments: turns.save(save, *arguments)),
        open_run(Path(folder, "qat")) as directory,
    ):
        qat.run_qat(job_with(turns, epochs), directory)
    return turns


def report(rounds: list[InTurn]) -> None:
    saves = [seconds for turns in rounds for seconds in turns.saves]
    step = statistics.mean(turns.step() for turns in rounds)
    print(f"{len(rounds)} rounds; medians in ms")
    print(f"hand-written {step * 1e3:7.2f}")
    print(f"stage        {ratios(rounds, InTurn.added)}, budget {LOOP:g}")
    print(f"null         {ratios(rounds, lambda turns: turns.itself)}")
    blocked = f"{statistics.median(saves) * 1e3:7.2f}   longest {max(saves) * 1e3:.2f}"
    print(f"a checkpoint {blocked}, budget one step")


def ratios(rounds: list[InTurn], added: Callable[[InTurn], float]) -> str:
    each = [1 + added(turns) / turns.step() for turns in rounds]
    return f"{statistics.mean(each):7.3f} times (rounds: {', '.join(f'{ratio:.3f}' for ratio in each)})"


if __name__ == "__main__":
    main()
