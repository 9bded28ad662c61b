"""The plan of a model without running a stage."""

from __future__ import annotations

from quantcfg.prepare.plan import Plan
from quantcfg.prepare.state import plan_of
from quantcfg.stages.job import Job


def make_plan(job: Job, stage: str) -> Plan:
    """What `prepare` would make of the model in ``stage``: ``calib`` or ``qat``."""
    return plan_of(job.prepare(job.build_model(), stage))
