"""The plan of a model without running a stage."""

from __future__ import annotations

from dataclasses import replace

from quantcfg.config.load import Config
from quantcfg.config.matching import covers
from quantcfg.config.patterns import PatternError
from quantcfg.config.suggest import listing
from quantcfg.errors import UsageError
from quantcfg.preparation.plan import Plan
from quantcfg.preparation.state import plan_of
from quantcfg.stages.job import Job
from quantcfg.stages.op_changes import OpChange, compare_on_model
from quantcfg.stages.survey import survey


def make_plan(job: Job, stage: str) -> Plan:
    """What `prepare` would make of the model in ``stage``: ``calib`` or ``qat``."""
    return plan_of(job.prepare(job.build_model(), stage))


def only_rows(plan: Plan, wanted: str) -> Plan:
    """The plan with the ops of one role (``float``), or of a name or pattern and inside of it.

    Raises:
        UsageError: there are none, or the pattern cannot be read.
    """
    roles = {row.role for row in plan.rows}
    if wanted in roles:
        return replace(plan, rows=tuple(row for row in plan.rows if row.role == wanted))
    try:
        covered = covers(wanted)
    except PatternError as error:
        raise UsageError(f"'{wanted}' is not a pattern: {error}", hint=error.hint) from None
    rows = tuple(row for row in plan.rows if covered(row.name))
    if not rows:
        raise UsageError(f"no op is called '{wanted}' or lies inside of it", hint=f"roles: {listing(roles)}")
    return replace(plan, rows=rows)


def changes_against(job: Job, other: Config, stage: str) -> list[OpChange]:
    """The ops that the config of ``job`` treats otherwise than ``other`` does, in one stage."""
    changes = compare_on_model(survey(job), other, job.config)
    return [change for change in changes if change.stage == stage]
