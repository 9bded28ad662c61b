"""The calibration stage: batches run through the observers, then every quantizer gets its qparams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from quantcfg.config.suggest import counted
from quantcfg.errors import UsageError
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, plan_of, set_fake_quantize
from quantcfg.runs.directory import RunDirectory
from quantcfg.runs.log import LOGGER, logging_to
from quantcfg.stages import records
from quantcfg.stages.agreement import require_agreement
from quantcfg.stages.batches import num_samples
from quantcfg.stages.clock import Clock, SaveTimer
from quantcfg.stages.data import DataSource, Numbered, length_of
from quantcfg.stages.evaluate import evaluate, require_finite
from quantcfg.stages.guards import check_metrics, check_plan, guard_results
from quantcfg.stages.identity import Identity, identity_of
from quantcfg.stages.integers import integer_metrics
from quantcfg.stages.job import Job
from quantcfg.stages.observer_comparison import Comparison, open_comparison, take_observers
from quantcfg.stages.recalculation import recalculate
from quantcfg.stages.seeding import random_state, restorer
from quantcfg.stages.sharding import ObserverShards, Pulse
from quantcfg.stages.signals import StopRequest, stop_request
from quantcfg.stages.user_code import in_batch


@dataclass(frozen=True, slots=True)
class Position:
    """How far a calibration is. ``is_solved``: the observers are done and the qparams are there."""

    batches: int = 0
    samples: int = 0
    is_solved: bool = False


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a calibration begins or goes on.

    ``random`` is the state of the generators there, ``resting`` names the quantizers that have seen enough:
    those of weights look once.
    """

    position: Position = Position()
    float_metrics: Mapping[str, float] | None = None
    random: Mapping[str, Any] | None = None
    resting: tuple[str, ...] = ()


def run_calib(
    job: Job, run: RunDirectory, statistics: RunDirectory | None = None, *, integer: bool = False
) -> None:
    """Calibrate the model of ``job`` and leave a finished run in ``run``. A finished one stays as it is.

    With the calibration run ``statistics`` no data is calibrated on: ranges are recalculated from what that
    run counted. ``integer`` evaluates the model that computes in integers, too.

    Raises:
        QuantcfgError: see the exit codes; nothing under a final name is half-written.
    """
    if records.is_finished(job, run, "calib"):
        return
    if statistics is not None:
        records.require_calibration(job, statistics)
        _refuse_comparison(job)
    clock = Clock()
    source = job.required_source("calib_data") if statistics is None else job.source("calib_data")
    float_model = job.build_model()
    model = job.prepare(float_model, "calib")
    check_plan(job.config, plan_of(model))
    identity = identity_of(job, float_model, "calib", statistics)
    comparison = open_comparison(job.config, float_model, model)
    shards = ObserverShards(model, job.ranks)
    stage = _Stage(job, run, float_model, model, source, identity, clock, shards, comparison, integer=integer)
    with logging_to(run.log):
        _run(stage, _start(stage, statistics))


@dataclass(slots=True)
class _Stage:
    """One calibration.

    A comparison of observers ends with another ``job`` and ``model``, which name the chosen ones, and with
    the ``table`` that says why.
    """

    job: Job
    run: RunDirectory
    float_model: nn.Module
    model: nn.Module
    source: DataSource
    identity: Identity
    clock: Clock
    shards: ObserverShards
    comparison: Comparison | None = None
    table: Mapping[str, Any] | None = None
    integer: bool = False


def _refuse_comparison(job: Job) -> None:
    if job.config.calib.compare is not None:
        raise UsageError(
            "calib.compare needs data, and --from reads none",
            hint="--set calib.compare=null recalculates with the observers of the rules",
        )


def _recalculated(stage: _Stage, statistics: RunDirectory) -> _Start:
    counted = stage.job.ranks.from_first(lambda: _recalculate(stage, statistics))
    stage.job.ranks.share_state(stage.model)
    records.begin(stage.job, stage.run, plan_of(stage.model))
    LOGGER.info("recalculated from the statistics of %s", statistics.path)
    return _Start(Position(*counted, is_solved=True))


def _recalculate(stage: _Stage, statistics: RunDirectory) -> tuple[int, int]:
    """Solve the counts of another run; how many batches and samples they are of."""
    if statistics.verify().facts["weights"] != stage.identity.weights:
        raise UsageError(f"'{statistics.path}' was calibrated with other float weights")
    rebuilt = records.rebuild(stage.job.alone(), statistics)
    recalculate(stage.model, rebuilt.model)
    return rebuilt.result["num_batches"], rebuilt.result["num_samples"]


def _start(stage: _Stage, statistics: RunDirectory | None) -> _Start:
    checkpoint = records.newest(stage.job, stage.run, stage.identity)
    if checkpoint is None and statistics is not None:
        return _recalculated(stage, statistics)
    records.begin(stage.job, stage.run, plan_of(stage.model), anew=checkpoint is None)
    if checkpoint is None:
        return _Start()
    state = checkpoint.state
    if stage.comparison is not None and state["comparison"] is not None:
        _name_chosen(stage, stage.comparison, state["comparison"])
    records.load_weights(stage.model, checkpoint, str(stage.run.path))
    position = Position(**state["position"])
    return _Start(position, state["float_metrics"], state["random"], tuple(state["resting"]))


def _run(stage: _Stage, start: _Start) -> None:
    float_metrics = start.float_metrics
    if float_metrics is None:
        float_metrics = _evaluate(stage, stage.float_model, "float")
    require_finite(float_metrics, "float", stage.job.ranks)
    check_metrics(stage.job.config, float_metrics)
    if stage.comparison is not None:
        stage.comparison.check(float_metrics)
    start = replace(start, float_metrics=float_metrics)
    with stop_request(can_insist=not stage.job.ranks.is_launched) as stop:
        with stage.clock.phase("calibration"):
            position = _calibrate(stage, start, stop)
        if stage.comparison is not None and not start.position.is_solved:
            with stop.obeyed_at_once():
                _settle(stage, stage.comparison)
        _save(stage, position, float_metrics)  # an evaluation may be stopped, and takes its time
    metrics = _evaluate_calibrated(stage)
    require_finite(metrics, "calibrated", stage.job.ranks)
    stage.run.metrics.append(step=position.batches, float=dict(float_metrics), calibrated=metrics)
    _finish(stage, position, float_metrics, metrics)


def _finish(
    stage: _Stage, position: Position, float_metrics: Mapping[str, float], metrics: Mapping[str, float]
) -> None:
    plan = plan_of(stage.model)
    integer = integer_metrics(stage.job, stage.model, stage.clock) if stage.integer else {}
    result = {
        "stage": "calib",
        "seed": stage.job.seed,
        "metrics": {"float": dict(float_metrics), "calibrated": dict(metrics), **integer},
        "num_batches": position.batches,
        "num_samples": position.samples,
        "skipped": _skipped(stage.model),
        **({"comparison": stage.table} if stage.table is not None else {}),
        "coverage": asdict(plan.coverage),
        "guards": guard_results(stage.job.config, plan, float_metrics, metrics),
    }
    if stage.table is not None:
        records.rewrite(stage.job, stage.run, plan)
    timing = stage.clock.timing()
    records.finish(stage.job, stage.run, stage.identity, step=position.batches, result=result, timing=timing)


def _evaluate(stage: _Stage, model: nn.Module, name: str) -> dict[str, float]:
    title = f"evaluating the {name} model"
    with stage.clock.phase("float_evaluation" if name == "float" else "evaluation"):
        return evaluate(model, stage.job.source("eval_data"), stage.job.progress, title)


def _evaluate_calibrated(stage: _Stage) -> dict[str, float]:
    set_fake_quantize(stage.model, FakeQuantState.VALIDATION)
    return _evaluate(stage, stage.model, "calibrated")


def _settle(stage: _Stage, comparison: Comparison) -> None:
    """Choose the observers, and go on with the model of a config that names them."""
    with stage.clock.phase("comparison"):
        verdict = comparison.decide(lambda: _evaluate_calibrated(stage))
    watched = stage.model
    _name_chosen(stage, comparison, comparison.table(verdict))
    take_observers(stage.model, watched, verdict.observers)


def _name_chosen(stage: _Stage, comparison: Comparison, table: Mapping[str, Any]) -> None:
    choices = {(row["op"], row["slot"]): row["chosen"] for row in table["ops"]}
    stage.table = table
    stage.job = stage.job.with_config(comparison.config(stage.job.config, choices))
    stage.model = stage.job.quietly().prepare(stage.float_model, "calib")


def _calibrate(stage: _Stage, start: _Start, stop: StopRequest) -> Position:
    job, position = stage.job, start.position
    if position.is_solved:
        restorer(start.random)()
        return position
    total = length_of(stage.source, job.config.calib.batches)
    if total is None and job.config.calib.samples is None:
        job.progress.note("calib_data() has no length, and all of it is used; calib.batches limits it")
    timer = SaveTimer()
    with (
        calibrating(stage.model),
        job.progress.task("calibrating", total, done=position.batches) as task,
    ):
        if start.position.batches:
            stage.shards.go_on(start.resting)
        for index, batch in _batches(job, stage.source, start, stop):
            if job.ranks.owns(index):
                _observe(stage, index, batch)
            position = Position(index + 1, position.samples + num_samples(batch))
            task.advance()
            if job.ranks.ends_round(index):
                _between_rounds(stage, position, start, stop, timer)
        _between_rounds(stage, position, start, stop, timer, is_end=True)
        stage.shards.finish()
    require_agreement(stage.model, job.ranks, "after the calibration")
    _note_shortage(job, position)
    return Position(position.batches, position.samples, is_solved=True)


def _observe(stage: _Stage, index: int, batch: Any) -> None:
    name = stage.source.name
    stage.shards.begin_batch(index)
    with in_batch(name, index), stage.source.drawing(index):
        stage.job.model_file.forward(stage.model, batch)
    stage.shards.end_batch(index)


def _between_rounds(
    stage: _Stage,
    position: Position,
    start: _Start,
    stop: StopRequest,
    timer: SaveTimer,
    *,
    is_end: bool = False,
) -> None:
    """Save, stop, or bring the statistics together, if any rank wants it: all of them are here."""
    ranks, is_compared = stage.job.ranks, is_end and stage.comparison is not None
    wishes = Pulse(
        position.batches,
        is_end,
        stage.source.digest,
        stop=stop.received or 0,
        save=ranks.is_first and (timer.is_due() or is_compared),
        merge=ranks.are_many and stage.shards.wants_merge,
    ).beat(ranks, stage.source.name)
    stop.receive(wishes.stop)
    if wishes.merge or wishes.save or wishes.stop:
        stage.shards.merge()
    if wishes.save or wishes.stop:
        _save(stage, position, start.float_metrics)
    if wishes.stop:
        with ranks.alike():
            raise records.interrupted(stage.job, stop, position.batches)


def _note_shortage(job: Job, position: Position) -> None:
    wanted = job.config.calib
    if wanted.batches is not None and position.batches < wanted.batches:
        had = counted(position.batches, "batch", "batches")
        job.progress.note(f"calib_data() had {had}; calib.batches asks for {wanted.batches}")
    if wanted.samples is not None and position.samples < wanted.samples:
        had = counted(position.samples, "sample")
        job.progress.note(f"calib_data() had {had}; calib.samples asks for {wanted.samples}")


def _batches(job: Job, source: DataSource, start: _Start, stop: StopRequest) -> Iterator[Numbered]:
    """The batches that are left, the last one cut where the config counts samples."""
    section, samples = job.config.calib, start.position.samples
    restore = restorer(start.random)
    if samples == section.samples:  # the run was stopped after the last one
        restore()
        return
    for index, batch in source.batches(
        skip=start.position.batches, limit=section.batches, after_skip=restore, stop=stop
    ):
        if section.samples is not None:
            batch = source.cut(index, batch, section.samples - samples)  # noqa: PLW2901  the rest is not used
        samples += num_samples(batch)
        yield index, batch
        if samples == section.samples:
            return


def _skipped(model: nn.Module) -> dict[str, int]:
    """How many batches each quantizer left out for a NaN or infinity."""
    counts = {name: int(module.observer.skipped) for name, module in fake_quants(model).items()}
    return {name: count for name, count in counts.items() if count}


def _save(stage: _Stage, position: Position, float_metrics: Mapping[str, float] | None) -> None:
    state = {
        "position": asdict(position),
        "float_metrics": float_metrics,
        "random": random_state(),
        "resting": [name for name, module in fake_quants(stage.model).items() if not module.observing],
        "comparison": stage.table,
    }
    records.save(stage.run, stage.model, position.batches, stage.identity, state)
