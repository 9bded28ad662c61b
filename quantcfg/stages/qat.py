"""The qat stage: calibrated ranges, then training with rounding in the loop."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from torch import nn

from quantcfg.preparation.state import (
    load_observer_params,
    plan_of,
)
from quantcfg.runs.checkpoint import Checkpoint
from quantcfg.runs.directory import RunDirectory, open_run
from quantcfg.runs.events import require_tensorboard
from quantcfg.runs.log import LOGGER, logging_to
from quantcfg.stages import records
from quantcfg.stages.averaging import WeightAverage
from quantcfg.stages.calib import run_calib
from quantcfg.stages.clock import Clock
from quantcfg.stages.data import DataSource
from quantcfg.stages.distillation import Teacher
from quantcfg.stages.evaluate import require_finite
from quantcfg.stages.guards import check_metrics, check_plan, guard_results
from quantcfg.stages.identity import Identity, identity_of, range_differences, refuse
from quantcfg.stages.integers import integer_metrics
from quantcfg.stages.job import Job
from quantcfg.stages.optimizers import LearningRate, build_learning_rate, build_optimizer
from quantcfg.stages.parallel import make_worker, shard
from quantcfg.stages.pauses import Pauses
from quantcfg.stages.scaling import LossScaler
from quantcfg.stages.selection import Selection
from quantcfg.stages.signals import stop_request
from quantcfg.stages.training import Length, Trainer


@dataclass(slots=True)
class _Stage:
    job: Job
    run: RunDirectory
    model: nn.Module
    identity: Identity
    clock: Clock
    calib_metrics: dict[str, dict[str, float]]
    selection: Selection
    float_model: nn.Module
    integer: bool


def run_qat(
    job: Job,
    run: RunDirectory,
    source: Path | None = None,
    *,
    integer: bool = False,
    tensorboard: bool = False,
) -> None:
    """Train the model of ``job`` and leave a finished run in ``run``. A finished one stays as it is.

    It starts from the calibration run ``source``; without one it calibrates first, in ``run/calib``.
    ``integer`` evaluates the model that computes in integers, too; ``tensorboard`` writes events for it.

    Raises:
        QuantcfgError: See the exit codes; nothing under a final name is half-written.
    """
    if tensorboard:
        with job.ranks.alike():
            require_tensorboard()
        run = run.with_events(job.progress.note)
    if records.is_finished(job, run, "qat"):
        return
    start = RunDirectory(source) if source is not None else None
    if start is not None:
        records.require_calibration(job, start)
    clock, data = Clock(), job.required_source("train_data")
    _note_idle_ranks(job)
    float_model = job.build_model()
    model = job.prepare(float_model, "qat")
    check_plan(job.config, plan_of(model))
    identity = identity_of(job, float_model, "qat", start)
    with logging_to(run.log):
        checkpoint = records.newest(job, run, identity)
        has_calibrated = run.resume and job.ranks.from_first(run.calib.is_dir)
        records.begin(job, run, plan_of(model), anew=checkpoint is None and not has_calibrated)
        calibrated = start if start is not None else _calibrate_first(job, run, clock)
        identity = _with_ranges(job, run, identity, calibrated, checkpoint)
        selection = Selection(job.config.qat.best)
        metrics = _metrics_of(job, calibrated)
        stage = _Stage(job, run, model, identity, clock, metrics, selection, float_model, integer)
        check_metrics(job.config, metrics["float"])
        selection.check(metrics["calibrated"])
        if checkpoint is None:
            _load_ranges(job, calibrated, stage)
        _train(stage, data, checkpoint, _teacher(job, float_model))


def _note_idle_ranks(job: Job) -> None:
    size, batches = job.ranks.size, job.config.qat.accumulate
    if batches < size:
        job.progress.note(
            f"{size - batches} of {size} ranks have nothing to do: a step has {batches} "
            f"{'batch' if batches == 1 else 'batches'} of train_data(); "
            f"smaller batches and a qat.accumulate of {size} give each its share"
        )


def _calibrate_first(job: Job, run: RunDirectory, clock: Clock) -> RunDirectory:
    with clock.phase("calibration"), _open_calib(run) as calib:
        run_calib(job, calib)
    return calib


def _open_calib(run: RunDirectory) -> AbstractContextManager[RunDirectory]:
    return open_run(run.calib, resume=run.resume, writes=run.writes)


def _with_ranges(
    job: Job, run: RunDirectory, identity: Identity, calibrated: RunDirectory, checkpoint: Checkpoint | None
) -> Identity:
    """Note what training starts from. One that goes on has to have started from it."""
    identity = replace(identity, ranges=job.ranks.from_first(calibrated.model_hash))
    if checkpoint is not None:
        with job.ranks.alike():
            refuse(run, range_differences(identity, checkpoint.facts, calibrated))
    return identity


def _metrics_of(job: Job, calibrated: RunDirectory) -> dict[str, dict[str, float]]:
    metrics = job.ranks.from_first(lambda: calibrated.read_result()["metrics"])
    return {name: metrics[name] for name in ("float", "calibrated")}


def _load_ranges(job: Job, calibrated: RunDirectory, stage: _Stage) -> None:
    """Start from the ranges of a calibration, which the first rank reads for all."""
    if job.ranks.is_first:
        report = load_observer_params(records.rebuild(job.alone(), calibrated).model, stage.model)
        LOGGER.info("started from %d calibrated ranges of %s", len(report.loaded), calibrated.path)
    job.ranks.share_state(stage.model)


def _teacher(job: Job, float_model: nn.Module) -> Teacher | None:
    section = job.config.qat.distill
    return Teacher(float_model, job.model_file, section) if section is not None else None


def _train(stage: _Stage, data: DataSource, checkpoint: Checkpoint | None, teacher: Teacher | None) -> None:
    if checkpoint is not None:
        records.load_weights(stage.model, checkpoint, str(stage.run.path))
    with stop_request(can_insist=not stage.job.ranks.is_launched) as stop:
        pauses = Pauses(stage.job, stage.run, stage.identity, stage.clock, stage.selection, stop)
        trainer = _trainer(stage, data, pauses, teacher)
        _restore(stage, trainer, checkpoint)
        total = _num_steps(stage.job, data)
        with (
            stage.clock.phase("training"),
            stage.job.progress.task("training", total, done=trainer.position.step, unit="step") as task,
        ):
            pauses.catch_up(trainer)
            trainer.run(task)
    _finish(stage, trainer)


def _finish(stage: _Stage, trainer: Trainer) -> None:
    """Write the result: the best evaluated model where the config asks for it, else the last one."""
    position, scaler = trainer.position, trainer.scaler
    step, metrics = stage.selection.kept(position.step)
    require_finite(metrics, "trained", stage.job.ranks)
    coverage, float_metrics = plan_of(stage.model).coverage, stage.calib_metrics.get("float", {})
    result = {
        "stage": "qat",
        "seed": stage.job.seed,
        "metrics": stage.calib_metrics | {"qat": metrics} | _integer_metrics(stage, step),
        "num_steps": position.step,
        "num_epochs": position.epoch,
        **({"best_step": step} if stage.selection.section is not None else {}),
        **({"num_skipped_steps": scaler.num_skipped} if scaler.is_enabled else {}),
        "coverage": asdict(coverage),
        "guards": guard_results(stage.job.config, plan_of(stage.model), float_metrics, metrics),
    }
    timing = stage.clock.timing()
    records.finish(stage.job, stage.run, stage.identity, step=step, result=result, timing=timing)


def _integer_metrics(stage: _Stage, step: int) -> dict[str, dict[str, float]]:
    """Metrics in integers of what is kept: that may be an average or an older step, and is never sharded."""
    if not stage.integer:
        return {}
    model = stage.job.quietly().prepare(stage.float_model, "qat")
    records.load_weights(model, records.saved(stage.job, stage.run, step), str(stage.run.path))
    return integer_metrics(stage.job, model, stage.clock)


def _restore(stage: _Stage, trainer: Trainer, checkpoint: Checkpoint | None) -> None:
    if checkpoint is None:
        stage.run.metrics.rewind()
        return
    trainer.load(checkpoint.state)
    stage.selection.load(checkpoint.state["selection"])
    trainer.is_stopped = stage.selection.is_exhausted


def _trainer(stage: _Stage, data: DataSource, pauses: Pauses, teacher: Teacher | None) -> Trainer:
    shard(stage.job, stage.model)
    optimizer, learning_rate = _optimizer(stage, data)
    section = stage.job.config.qat
    length = Length(None, section.steps) if section.steps else Length(section.epochs, None)
    log = stage.run.metrics
    scaler = LossScaler.of(stage.job.device, section.autocast, stage.model)
    worker = make_worker(stage.job, stage.model, teacher)
    parts = (stage.model, worker, optimizer, learning_rate, scaler, data, length, log)
    trainer = Trainer(stage.job, *parts, pauses)
    if section.ema is not None:
        trainer.average = WeightAverage(stage.model, section.ema)
    return trainer


def _optimizer(stage: _Stage, data: DataSource) -> tuple[Any, LearningRate]:
    section = stage.job.config.qat
    if stage.job.model_file.has("optimizer"):
        optimizer = stage.job.model_file.optimizer(stage.model)
    else:
        optimizer = build_optimizer(section.optimizer, stage.model)
    return optimizer, build_learning_rate(section.scheduler, optimizer, _num_steps(stage.job, data))


def _num_steps(job: Job, data: DataSource) -> int | None:
    if job.config.qat.steps is not None:
        return job.config.qat.steps
    length = data.num_batches()
    return None if length is None else ceil(length / job.config.qat.accumulate) * job.config.qat.epochs
