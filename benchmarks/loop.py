"""What the qat stage's loop adds to a hand-written one, and how long a checkpoint stops it.

    python -m benchmarks.loop [--epochs N] [--rounds N] [--threads N]

The demo is trained by `quantcfg qat`. After each of its steps the hand-written loop makes one, of the same
model, loader, optimizer and average of the weights: what slows the machine slows both. Where a model lies in
memory moves a step by a percent either way, so there are several rounds, each with models of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

import quantcfg as qc
from quantcfg.config.load import load_config
from quantcfg.runs.directory import RunDirectory, open_run
from quantcfg.stages import qat, records
from quantcfg.stages.calib import run_calib
from quantcfg.stages.job import Job
from quantcfg.stages.model_file import load_model_file
from quantcfg.stages.pauses import Pauses
from quantcfg.stages.progress import Progress, Silence

ROOT = Path(__file__).resolve().parents[1]
MODEL, CONFIG = ROOT / "examples/digits/model.py", ROOT / "configs/digits_w4a4.yaml"
LOOP = 1.03  # times the hand-written loop
WARM_UP = 40  # steps


@dataclass
class InTurn(Silence):
    """A progress that makes a step of another loop after each of the stage's, and times both."""

    other: Iterator[float]
    stage: list[float] = field(default_factory=list)
    hand: list[float] = field(default_factory=list)
    last: float = 0.0
    is_training: bool = False

    @contextmanager
    def task(self, title: str, total: int | None, *, done: int = 0, unit: str = "batch") -> Iterator[InTurn]:
        del total, done, unit
        before, self.is_training = self.is_training, title == "training"
        self.last = time.perf_counter()
        yield self
        self.is_training = before

    def advance(self, **values: float) -> None:
        del values
        if not self.is_training:
            return
        now = time.perf_counter()
        self.stage.append(now - self.last)
        next(self.other)
        self.last = time.perf_counter()
        self.hand.append(self.last - now)


def job_with(progress: Progress, epochs: int) -> Job:
    config = load_config(CONFIG, overrides=[f"qat.epochs={epochs}"])
    return Job(load_model_file(str(MODEL)), config, seed=0, device=torch.device("cpu"), progress=progress)


def hand_written(job: Job, calibrated: RunDirectory) -> Iterator[float]:
    """The loop of a tutorial: the loss of each step.

    It has what the config asks for, and nothing that a run has beside it: no check that loss and gradients
    are finite, no seed for each batch, no log, no place in an error, nothing that can be saved or stopped.
    """
    module, rebuilt = job.model_file.module, records.rebuild(job, calibrated)
    model = job.prepare(rebuilt.float_model, "qat")
    qc.load_observer_params(rebuilt.model, model)
    qc.set_fake_quantize(model, qc.FakeQuantState.QAT)
    model.train()
    loader = module.train_data()
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


@contextmanager
def timed_saves() -> Iterator[list[float]]:
    seconds: list[float] = []
    save = Pauses._save

    def timed(*arguments: object) -> None:
        began = time.perf_counter()
        save(*arguments)
        seconds.append(time.perf_counter() - began)

    Pauses._save = timed
    try:
        yield seconds
    finally:
        Pauses._save = save


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with timed_saves() as saves:
        rounds = [one_round(options.epochs) for _ in range(options.rounds)]
    report(rounds, saves)


def one_round(epochs: int) -> tuple[float, float]:
    """The median time of a hand-written step, and of what the stage adds to the one before it."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = job_with(Silence(), epochs)
        with open_run(Path(folder, "calib")) as run:
            run_calib(quiet, run)
        turns = InTurn(hand_written(quiet, RunDirectory(Path(folder, "calib"))))
        with open_run(Path(folder, "qat")) as run:
            qat.run_qat(job_with(turns, epochs), run, Path(folder, "calib"))
    stage, hand = turns.stage[WARM_UP:], turns.hand[WARM_UP:]
    return statistics.median(hand), statistics.median(a - b for a, b in zip(stage, hand, strict=True))


def report(rounds: list[tuple[float, float]], saves: list[float]) -> None:
    step, added = (statistics.mean(values) for values in zip(*rounds, strict=True))
    ratio = 1 + added / step
    each = ", ".join(f"{1 + more / own:.3f}" for own, more in rounds)
    print(f"{len(rounds)} rounds; means of their medians in ms")
    print(f"hand-written {step * 1e3:7.2f}")
    print(f"stage        {step * ratio * 1e3:7.2f}   {ratio:.3f} times, budget {LOOP:g}   (rounds: {each})")
    blocked = f"{statistics.median(saves) * 1e3:7.2f}   longest {max(saves) * 1e3:.2f}"
    print(f"a checkpoint {blocked}, budget one step")


if __name__ == "__main__":
    main()
