"""What a stage leaves in its run directory, and how it finds its way back into one."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantcfg.config.load import load_config
from quantcfg.errors import Interrupted, RunError, UsageError
from quantcfg.preparation.plan import Plan
from quantcfg.runs.checkpoint import (
    Checkpoint,
    checkpoint_paths,
    drop_newer_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    snapshot,
    write_snapshot,
)
from quantcfg.runs.directory import RunDirectory
from quantcfg.runs.log import LOGGER
from quantcfg.runs.manifest import hash_file, read_manifest
from quantcfg.runs.tree import join_tensors, split_tensors
from quantcfg.stages.config_files import config_files, resolved_yaml
from quantcfg.stages.fingerprint import hash_state
from quantcfg.stages.identity import (
    Identity,
    changed_surroundings,
    command_differences,
    data_differences,
    differences,
    refuse,
    surroundings,
)
from quantcfg.stages.job import Job
from quantcfg.stages.provenance import data_fingerprints, git_state
from quantcfg.stages.ranks import Ranks
from quantcfg.stages.sharded import whole_state
from quantcfg.stages.signals import StopRequest

RESULT_VERSION = 1
_BUFFERS = "buffers"
_KEPT = 2  # checkpoints of an unfinished run: the newest, and one to fall back to


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The two models of a finished run: in float, and prepared with what its checkpoint holds."""

    float_model: nn.Module
    model: nn.Module
    result: Mapping[str, Any]


def begin(job: Job, run: RunDirectory, plan: Plan, *, anew: bool = True) -> None:
    """Write config and plan of a run, which starts ``anew`` unless what is there is gone on with."""
    run.begin(config_files=config_files(job.config), plan=plan.to_dict(), anew=anew)
    LOGGER.info("%s: %s", "begun" if anew else "gone on with", " ".join(job.command))


def rewrite(job: Job, run: RunDirectory, plan: Plan) -> None:
    """Write the config that counted in the end, and its plan, over those of the beginning."""
    run.rewrite(resolved_config=resolved_yaml(job.config), plan=plan.to_dict())


def is_finished(job: Job, run: RunDirectory, stage: str) -> bool:
    """Whether there is nothing left to do for a resumed run, which is said aloud.

    Raises:
        UsageError: it was finished with another config, seed or stage.
        RunError: it was finished, and something in it was changed or lost since.
    """
    if not (run.resume and job.ranks.from_first(lambda: run.is_finished)):
        return False
    if run.writes:
        refuse(run, command_differences(job, stage, run.verify().facts, run))
    job.progress.note(f"the run in '{run.path.name}' is already finished")
    return True


def require_calibration(job: Job, source: RunDirectory) -> None:
    """Refuse to start from anything but a whole calibration run.

    Raises:
        UsageError: there is none.
        RunError: it is damaged.
    """
    if not job.ranks.is_first:
        return
    source.verify()
    stage = source.read_result()["stage"]
    if stage != "calib":
        raise UsageError(f"'{source.path}' is a {stage} run; --from takes a calibration run")


def newest(job: Job, run: RunDirectory, identity: Identity) -> Checkpoint | None:
    """The checkpoint to go on from, or None when there is none. Damaged ones are passed over aloud.

    Raises:
        UsageError: the run was begun with another config, model, seed, stage, calibration or other data, or
            has no checkpoint of the name that was asked for. Nothing in it was changed.
        RunError: the checkpoint that was asked for is damaged.
    """
    if not run.resume:
        return None
    checkpoint = share_checkpoint(job.ranks, _newest(job, run, identity) if run.writes else None)
    if checkpoint is None:
        job.progress.note(f"nothing to resume in '{run.path.name}': starting from the beginning")
        return None
    refuse(run, data_differences(job, checkpoint.facts))
    if run.writes:
        drop_newer_checkpoints(run.checkpoints, checkpoint.step)
    run.metrics.rewind(checkpoint.step, checkpoint.metrics)
    job.progress.note(f"going on from step {checkpoint.step} of '{run.path.name}'")
    LOGGER.info("resumed from step %d", checkpoint.step)
    if changed := changed_surroundings(job, checkpoint.facts):
        job.progress.note(f"since that step {changed}: the last bits may come out otherwise")
    return checkpoint


def _newest(job: Job, run: RunDirectory, identity: Identity) -> Checkpoint | None:
    checkpoint, skipped = _read(run)
    for fault in skipped:
        job.progress.note(f"skipped a checkpoint: {fault}")
        LOGGER.warning("skipped a checkpoint: %s", fault)
    refuse(run, differences(identity, checkpoint.facts if checkpoint else _begun_with(run), run))
    if checkpoint is not None and checkpoint.step == int(checkpoint_paths(run.checkpoints)[-1].name):
        _require_best(run, checkpoint)
    return checkpoint


def _require_best(run: RunDirectory, checkpoint: Checkpoint) -> None:
    """Refuse to go on without the model that is to be kept.

    That holds for the newest checkpoint: the best one of an older one may have been dropped for a better one,
    which comes again.
    """
    best = checkpoint.state.get("selection", {}).get("best_step")
    if best not in (None, checkpoint.step):
        _require_kept(run, best)


def _require_kept(run: RunDirectory, step: int) -> None:
    """Look at the checkpoint of ``step``, which is the result or may become it.

    Raises:
        RunError: It is lost.
    """
    try:
        load_checkpoint(run.checkpoints / str(step))
    except RunError as error:
        hint = "--force starts again"
        raise RunError(f"the model to be kept is lost: {error.message}", hint=hint) from error


def _read(run: RunDirectory) -> tuple[Checkpoint | None, tuple[str, ...]]:
    if run.checkpoint is None:
        return newest_checkpoint(run.checkpoints)
    if not run.checkpoint.is_dir():
        steps = ", ".join(path.name for path in checkpoint_paths(run.checkpoints)) or "none"
        raise UsageError(f"there is no checkpoint '{run.checkpoint}'", hint=f"those of the run: {steps}")
    return load_checkpoint(run.checkpoint), ()


def _begun_with(run: RunDirectory) -> dict[str, Any]:
    """What is known of a run without a checkpoint: it may have calibrated."""
    calib = RunDirectory(run.calib)
    if not calib.is_finished:
        return {"stage": "qat"} if calib.path.is_dir() else {}
    calib.verify()
    facts = read_manifest(calib.path / calib.read_result()["checkpoint"]).facts
    shared = ("seed", "config", "weights", "kinds")
    return {"stage": "qat"} | {name: facts[name] for name in shared if name in facts}


def share_checkpoint(ranks: Ranks, checkpoint: Checkpoint | None) -> Checkpoint | None:
    """Give every rank the ``checkpoint`` that the first one has read, or None."""
    if not ranks.are_many:
        return checkpoint
    document, tensors = split_tensors(checkpoint.state if checkpoint else None)
    step, facts = (checkpoint.step, checkpoint.facts) if checkpoint else (None, {})
    shared = ranks.from_first(lambda: {"step": step, "state": document, "facts": facts})
    if shared["step"] is None:
        return None
    model = ranks.spread_tensors(dict(checkpoint.model) if checkpoint else {})
    state = join_tensors(shared["state"], ranks.spread_tensors(tensors))
    own = checkpoint.metrics if checkpoint else b""  # for the one that writes
    return Checkpoint(shared["step"], model, state, shared["facts"], own)


def save(
    run: RunDirectory,
    model: nn.Module,
    step: int,
    identity: Identity,
    state: Mapping[str, Any],
    *,
    spare: Collection[int] = (),
    inside: AbstractContextManager[None] = nullcontext(),  # noqa: B008  it holds nothing
) -> None:
    """Save the checkpoint of ``step``, and then drop those that are too old, but for the steps to ``spare``.

    Copies are made at once, ``inside`` a block in which the model is what is to be saved; writing them goes
    on beside the work, until `finish` or the end of the run.
    """
    with inside:
        tensors = whole_state(model.state_dict())
        if not run.writes:
            return
        everything = {**state, _BUFFERS: _left_out(model, tensors)}
        taken = snapshot(Checkpoint(step, tensors, everything, identity.facts(), run.metrics.content()))

    def write() -> None:
        write_snapshot(run.checkpoints, taken)
        prune_checkpoints(run.checkpoints, keep=_KEPT, spare=spare)
        LOGGER.info("saved checkpoint %d", step)

    run.saver.begin(write)


def saved(job: Job, run: RunDirectory, step: int) -> Checkpoint:
    """The weights that this run saved after ``step``, for every rank, without the state of the training."""
    checkpoint = None
    if run.writes:
        run.saver.wait()
        whole_checkpoint = load_checkpoint(run.checkpoints / str(step))
        checkpoint = replace(whole_checkpoint, state={_BUFFERS: whole_checkpoint.state[_BUFFERS]})
    shared = share_checkpoint(job.ranks, checkpoint)
    assert shared is not None
    return shared


def interrupted(job: Job, stop: StopRequest, step: int) -> Interrupted:
    """The error that ends a run whose state of ``step`` was just saved."""
    assert stop.received is not None
    LOGGER.info("stopped by %s after step %d", stop.received.name, step)
    return Interrupted(
        f"stopped by {stop.received.name} after step {step}, which is saved",
        command=job.resume_command,
        exit_code=stop.exit_code,
    )


def finish(
    job: Job,
    run: RunDirectory,
    identity: Identity,
    *,
    step: int,
    result: Mapping[str, Any],
    timing: Mapping[str, float],
) -> None:
    """Write result and manifest. Of the checkpoints the last one stays, and that of ``step``: the result."""
    facts = _facts(job, identity)  # on every rank: what is not read yet, all read together
    if not run.writes:
        return
    run.saver.wait()
    _require_kept(run, step)
    prune_checkpoints(run.checkpoints, keep=1, spare=(step,))
    LOGGER.info("finished: %s", result["metrics"])
    document = {"format_version": RESULT_VERSION, **result, "checkpoint": f"{run.checkpoints.name}/{step}"}
    run.finish(result=document, timing=timing, facts=facts)


def rebuild(job: Job, run: RunDirectory) -> Rebuilt:
    """Build the models of a finished run again, from its own config and seed.

    Raises:
        UsageError: there is no finished run.
        RunError: the run is damaged, or does not fit the model.
    """
    facts, result = run.verify().facts, run.read_result()
    own = replace(job, config=load_config(run.resolved_config), seed=result["seed"])
    float_model = own.build_model()
    model = own.quietly().prepare(float_model, result["stage"])  # what there is to say was said by the run
    checkpoint = load_checkpoint(run.path / result["checkpoint"])
    load_weights(model, checkpoint, str(run.path))
    if hash_state(float_model.state_dict()) != facts["weights"]:
        job.progress.note(f"the float weights of the model are not those of the run '{run.path.name}'")
    return Rebuilt(float_model, model, result)


def load_weights(model: nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Put the tensors of ``checkpoint`` into ``model``.

    Raises:
        RunError: their names or shapes differ.
    """
    try:
        model.load_state_dict(dict(checkpoint.model), strict=True)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[1:2] or [str(error)]
        raise RunError(
            f"'{name}' was made with another model: {_shortened(first[0].strip())}",
            hint="build_model() has to build the same model each time, and forward to add nothing to it",
        ) from error
    for key, buffer in _left_out(model, checkpoint.model).items():
        saved = checkpoint.state.get(_BUFFERS, {}).get(key, buffer)
        if not torch.equal(buffer, saved.to(buffer.device)):
            buffer.set_(saved.to(buffer.device))


def _left_out(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Buffers that are no part of a model's own state, though forward may change them."""
    return {name: buffer for name, buffer in model.named_buffers() if name not in state}


def _shortened(text: str) -> str:
    """What torch says of a state that does not fit, with the first of the many names that it may list."""
    first, *others = text.split(', "')
    return f"{first} and {len(others)} more" if others else text


def _facts(job: Job, identity: Identity) -> dict[str, Any]:
    source = getattr(job.model_file.module, "__file__", None)
    return {
        "command": list(job.command),
        **identity.terms(),
        "model_file": hash_file(Path(source)) if source and Path(source).is_file() else None,
        "git": {
            "model": git_state(Path(source)) if source else None,
            "config": git_state(job.directory / job.config.path),
        },
        "data": data_fingerprints(job.used_sources),
        "system": platform.platform(),
        **surroundings(job),
    }
