"""A model's ops, recorded once, to ask what any config makes of them without preparing it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from quantcfg.config.findings import check_rules
from quantcfg.config.load import Config, empty_config
from quantcfg.config.presets import STAGES
from quantcfg.config.rules import Decision, RuleSet, Target
from quantcfg.errors import ConfigError, Diagnostic
from quantcfg.preparation.assign import Assignment, Assignments
from quantcfg.preparation.hardware import Adjustment, Assigner, target_of
from quantcfg.preparation.outcomes import Treatment, check_outcomes, treatments
from quantcfg.preparation.record import Recording
from quantcfg.preparation.rules import default_activation, idle_modules
from quantcfg.preparation.state import prepared
from quantcfg.preparation.targets import targets_of, with_attributes
from quantcfg.preparation.templates import with_templates
from quantcfg.stages.job import Job


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one stage of a config makes of a model. ``decisions`` are those of the rules alone."""

    stage: str
    rules: RuleSet
    decisions: tuple[Decision, ...]
    rows: tuple[Assignment, ...]
    table: tuple[Treatment, ...]
    adjustments: tuple[Adjustment, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """The float model, what ran in it, and its ops as rules see them."""

    model: nn.Module
    recording: Recording
    targets: tuple[Target, ...]

    def outcome(self, config: Config, stage: str) -> Outcome:
        """What ``config`` makes of the model in ``stage``.

        Raises:
            ConfigError: a rule inherits a qconfig that its own parameters do not fit, or the target does not
                take a grid.
        """
        rules = with_attributes(config.rules(stage), self.model)
        decisions = rules.resolve(self.targets)
        assignments, adjustments = self._assign(config, stage, rules, decisions)
        table = treatments(self.recording, assignments)
        return Outcome(stage, rules, tuple(decisions), tuple(assignments.rows), tuple(table), adjustments)

    def check(self, config: Config, stage: str) -> list[Diagnostic]:
        """Everything that is to be said about the rules of ``stage`` on this model."""
        rules = with_attributes(config.rules(stage), self.model)
        try:
            decisions = rules.resolve(self.targets)
        except ConfigError as error:
            return list(error.diagnostics)
        findings = check_rules(rules, self.targets, decisions, idle_modules(self.model, self.targets))
        try:
            assignments, _ = self._assign(config, stage, rules, decisions)
        except ConfigError as error:
            return [*findings, *error.diagnostics]
        return findings + check_outcomes(
            rules,
            self.recording,
            decisions,
            assignments,
            assign=lambda other: self._assign(config, stage, rules, other)[0],
            told={finding.place for finding in findings},
        )

    def _assign(
        self, config: Config, stage: str, rules: RuleSet, decisions: Sequence[Decision]
    ) -> tuple[Assignments, tuple[Adjustment, ...]]:
        refined = with_templates(config.templates(stage), self.recording, decisions)
        assigner = Assigner(self.recording, default_activation(rules), rules, target_of(config))
        fitting, adjustments = assigner.fit(refined)
        return assigner.assign(fitting), adjustments


def survey(job: Job) -> Survey:
    """Run the model of ``job`` once, whatever its config says of it."""
    model = job.build_model()
    recording = prepared(replace(job, config=empty_config()).prepare(model, "calib")).recording
    return Survey(model, recording, tuple(targets_of(model, recording)))


def check_on_model(config: Config, surveyed: Survey) -> list[Diagnostic]:
    """The findings of both stages, each once, errors first and by place."""
    unique: dict[tuple[str, object, str], Diagnostic] = {}
    for stage in STAGES:
        for finding in surveyed.check(config, stage):
            unique.setdefault((finding.code, finding.place, finding.summary), finding)
    return sorted(unique.values(), key=_order)


def _order(finding: Diagnostic) -> tuple[bool, str, int, int]:
    place = finding.place
    where = (place.file, place.line, place.column) if place else ("", 0, 0)
    return (finding.severity != "error", *where)
