"""What a run is made of, and what is not as it was when one is to be gone on with."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from quantcfg.config.suggest import change, listing
from quantcfg.errors import UsageError
from quantcfg.runs.directory import RunDirectory
from quantcfg.stages.config_files import changed_fields, config_identity
from quantcfg.stages.data import DataFacts, DataSource
from quantcfg.stages.fingerprint import hash_state, hash_text, kinds_of, versions
from quantcfg.stages.job import Job

_READ = {"calib": ("calib_data", "eval_data"), "qat": ("train_data", "eval_data")}
_SHOWN = 3  # of several differences of one kind
_DIGITS = 12  # of a SHA-256
_SAME_DATA = "give it the data that it was begun with"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a run is made of, all of which must be the same for it to be gone on with.

    Attributes:
        job: gives the data.
        command: stage, seed and the SHA-256 of the config.
        weights: SHA-256 of the state of the float model.
        kinds: dtype and shape of each tensor in it.
        calibration: SHA-256 of the calibrated model of ``--from``; empty without it.
        ranges: the same of the one that training started from, of ``--from`` or its own; empty before.
    """

    job: Job
    command: Mapping[str, Any]
    weights: str
    kinds: Mapping[str, str]
    calibration: str = ""
    ranges: str = ""

    def terms(self) -> dict[str, Any]:
        """What holds from the beginning, in plain values."""
        terms = {**self.command, "weights": self.weights}
        return terms | ({"calibration": self.calibration} if self.calibration else {})

    def facts(self) -> dict[str, Any]:
        """All of it as a checkpoint keeps it, with what was read of the data by now, and the surroundings."""
        sources = [self.job.source(name) for name in _READ[self.command["stage"]]]
        data = {s.name: asdict(s.facts) if s.exists else None for s in sources if s.is_open or not s.exists}
        made_of = {"kinds": dict(self.kinds), "ranges": self.ranges, "data": data}
        return {**self.terms(), **made_of, **surroundings(self.job)}


@dataclass(frozen=True, slots=True)
class Difference:
    """``what`` is not as it was, how that is, and the ``fix`` that goes on all the same, if there is one."""

    what: str
    how: str
    fix: str = ""


def identity_of(job: Job, float_model: nn.Module, stage: str, source: RunDirectory | None = None) -> Identity:
    """What a run of this stage is made of. It starts from the calibration run ``source``, if there is one."""
    state = float_model.state_dict()
    calibration = source.model_hash() if source is not None and job.ranks.is_first else ""
    return Identity(job, _terms(job, stage), hash_state(state), kinds_of(state), calibration)


def surroundings(job: Job) -> dict[str, Any]:
    """What the last bits may depend on, and no command asks for."""
    return {"device": str(job.device), "threads": torch.get_num_threads(), "versions": versions()}


def refuse(run: RunDirectory, differences: Iterable[Difference]) -> None:
    """Let nobody go on with a run that was begun with something else.

    Raises:
        UsageError: there are ``differences``.
    """
    if not (found := list(differences)):
        return
    names = " and ".join(dict.fromkeys(difference.what for difference in found))
    fixes = dict.fromkeys(difference.fix for difference in found if difference.fix)
    raise UsageError(
        f"'{run.path}' was begun with another {names}: {'; '.join(difference.how for difference in found)}",
        hint="; ".join((*fixes, "--force starts again", "-o names another directory")),
    )


def differences(identity: Identity, before: Mapping[str, Any], run: RunDirectory) -> Iterator[Difference]:
    """What differs from what ``run`` was ``before``, as far as that is known, beside the data."""
    yield from command_differences(identity.job, identity.command["stage"], before, run)
    same_seed = before.get("seed", identity.job.seed) == identity.job.seed  # another one draws other values
    same_kinds = before.get("kinds", identity.kinds) == identity.kinds
    if before.get("weights", identity.weights) != identity.weights and (same_seed or not same_kinds):
        yield Difference("model", _changed_kinds(before.get("kinds", {}), identity.kinds))
    if (was := before.get("calibration", "")) != identity.calibration and before:
        yield Difference("calibration", _changed_calibration(was, identity.calibration))


def command_differences(
    job: Job, stage: str, before: Mapping[str, Any], run: RunDirectory
) -> Iterator[Difference]:
    """The same of what is known before a model is built."""
    now = _terms(job, stage)
    was = {**now, **before}
    if was["stage"] != stage:
        yield Difference("stage", f"{was['stage']}, not {stage}")
    if was["seed"] != job.seed:
        how, fix = change("the seed", was["seed"], job.seed), f"--seed {was['seed']} goes on with it"
        yield Difference("seed", how, fix)
    if before.get("config") != now["config"] and (how := _changed_config(job, before, run)):
        command = shlex.join(("quantcfg", "diff", str(run.path), str(job.config.path)))
        yield Difference("config", how, f"{command} compares the files")


def range_differences(
    identity: Identity, before: Mapping[str, Any], calibrated: RunDirectory
) -> Iterator[Difference]:
    """Whether training started from other ranges than those of ``calibrated``."""
    if before.get("ranges", identity.ranges) != identity.ranges:
        yield Difference("calibration", f"'{calibrated.path}' is not the one that training started from")


def data_differences(job: Job, before: Mapping[str, Any]) -> Iterator[Difference]:
    """What differs in the data functions. Of each no more than one batch is read.

    Raises:
        UserCodeError: one cannot be read.
    """
    for name, saved in before.get("data", {}).items():
        source = job.source(name)
        if source.exists != (saved is not None):
            how = f"{name}() was there and is not" if saved else f"{name}() was not there and is"
            yield Difference(f"{name}()", how)
        elif saved is not None:
            was = DataFacts(**saved)
            yield from _changed_data(job, source, was)
            source.go_on(was)


def changed_surroundings(job: Job, before: Mapping[str, Any]) -> str:
    """What differs in the surroundings, in words; empty when nothing does."""
    was, now = _by_name(before), _by_name(surroundings(job))
    return ", ".join(change(name, was[name], now[name]) for name in was if was[name] != now.get(name))


def _terms(job: Job, stage: str) -> dict[str, Any]:
    return {"stage": stage, "seed": job.seed, "config": hash_text(config_identity(job.config))}


def _changed_config(job: Job, before: Mapping[str, Any], run: RunDirectory) -> str:
    begun = run.resolved_config
    fields = changed_fields(begun, job.config) if begun.is_file() else []
    order = "the same fields in another order, or a checkpoint of another run" if "config" in before else ""
    return listing(fields, _SHOWN) or order


def _changed_kinds(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    names = [name for name in dict.fromkeys((*now, *was)) if was.get(name) != now.get(name)]
    if not (was and names):
        return "its float weights have other values"
    return listing((change(f"'{name}'", was.get(name), now.get(name)) for name in names), _SHOWN)


def _changed_calibration(was: str, now: str) -> str:
    if was and now:
        return "--from names another one than it did"
    return "--from was given and is not" if was else "--from was not given and is"


def _changed_data(job: Job, source: DataSource, was: DataFacts) -> Iterator[Difference]:
    what, now = f"{source.name}()", source.look()
    if _differ(was.num_batches, now.num_batches):
        how = change(f"the number of batches of {what}", was.num_batches, now.num_batches)
        yield Difference(what, how, _SAME_DATA)
    elif _differ(was.num_workers, now.num_workers):
        how = change(f"num_workers of {what}", was.num_workers, now.num_workers)
        fix = f"num_workers={was.num_workers} goes on with it: what workers draw depends on their number"
        yield Difference(what, how, fix)
    elif was.first_batch and was.first_batch != (first := source.fingerprint()):
        if source.read_fingerprint() == first:
            digests = was.first_batch[:_DIGITS], first[:_DIGITS]
            yield Difference(what, change(f"the SHA-256 of the first batch of {what}", *digests), _SAME_DATA)
        else:
            job.progress.note(f"{what} gives other batches each time: the end is not that of a whole run")


def _differ(was: int | None, now: int | None) -> bool:
    """A generator may give what a DataLoader gave: the one has no length and no workers to speak of."""
    return None not in (was, now) and was != now


def _by_name(facts: Mapping[str, Any]) -> dict[str, Any]:
    names = ("device", "threads")
    return {**facts.get("versions", {}), **{name: facts[name] for name in names if name in facts}}
