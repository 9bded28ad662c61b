"""What two configs make different of one model: the difference of their resolved tables."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantcfg.config.load import Config
from quantcfg.config.parameters import with_defaults
from quantcfg.config.presets import STAGES
from quantcfg.preparation.assign import rule_text
from quantcfg.preparation.outcomes import Treatment
from quantcfg.stages.survey import Survey


@dataclass(frozen=True, slots=True)
class OpChange:
    """An op that two configs treat differently in a stage, and the rule that decides in each."""

    name: str
    stage: str
    before: Treatment
    after: Treatment
    rule_before: str
    rule_after: str


def compare_on_model(surveyed: Survey, a: Config, b: Config) -> list[OpChange]:
    """Every op whose row of the resolved table differs, in the order they run, by stage."""
    changes: list[OpChange] = []
    for stage in STAGES:
        old, new = surveyed.outcome(a, stage), surveyed.outcome(b, stage)
        for index, (before, after) in enumerate(zip(old.table, new.table, strict=True)):
            if _meaning(before) != _meaning(after):
                rules = (rule_text(made.rows[index].decision.winner) for made in (old, new))
                changes.append(OpChange(before.name, stage, before, after, *rules))
    return changes


def _meaning(made: Treatment) -> Treatment:
    """The row with defaults written out, so that what is spelt differently and quantizes alike is equal."""
    return replace(
        made,
        output=made.output and with_defaults(made.output),
        weight=made.weight and with_defaults(made.weight),
        inputs=tuple((name, with_defaults(spec)) for name, spec in made.inputs),
    )
