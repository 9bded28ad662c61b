"""Loads a config: files, `extends` and `--set` in, one checked value out, or every error at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import ValidationError

from quantcfg.config.budget import refuse_too_many
from quantcfg.config.collect import Findings
from quantcfg.config.compiled import file_validator
from quantcfg.config.hardware import PROFILES, check_target
from quantcfg.config.layers import VERSION, Loader
from quantcfg.config.nodes import NOWHERE, Table, as_table, plain, renamed
from quantcfg.config.overrides import apply_overrides
from quantcfg.config.presets import STAGES
from quantcfg.config.qconfigs import QConfigReader
from quantcfg.config.rulebook import build_rules, check_pattern, stage_templates
from quantcfg.config.rules import Rule, RuleSet
from quantcfg.config.sensitivity import with_tables
from quantcfg.config.slot_checks import SlotChecker
from quantcfg.config.translate import Translator
from quantcfg.errors import Diagnostic, Place, UsageError

if TYPE_CHECKING:
    from quantcfg.config.schema import CalibSection, ExportSection, File, Guards, QatSection


@dataclass(frozen=True)
class Config:
    """A checked config: what the file, all that it extends and `--set` say together.

    ``path`` is the first file as it was named, ``files`` all that were read, ``sources`` their texts by name,
    ``warnings`` what is worth a look and no error.
    """

    path: Path
    files: tuple[Path, ...]
    sources: Mapping[str, str] = field(repr=False)
    overrides: tuple[str, ...]
    warnings: tuple[Diagnostic, ...]
    tree: Table = field(repr=False)
    stages: Mapping[str, tuple[Rule, ...]] = field(repr=False)

    def rules(self, stage: str) -> RuleSet:
        """The rules of ``"calib"`` or ``"qat"``, the shared ones included."""
        return RuleSet(self.stages[stage], self.sources)

    def templates(self, stage: str) -> tuple[str, ...]:
        """The names of the templates of a stage."""
        return stage_templates(self.tree, stage)

    @cached_property
    def file(self) -> File:
        """The whole file as a model, with defaults. It is made when it is asked for: a check does without."""
        from quantcfg.config.schema import File

        return File.model_validate(self.flattened())

    @property
    def calib(self) -> CalibSection:
        """The calibration section, with defaults."""
        return self.file.calib

    @property
    def qat(self) -> QatSection:
        """The training section, with defaults."""
        return self.file.qat

    @property
    def export(self) -> ExportSection:
        """The export section, with defaults."""
        return self.file.export

    @property
    def guards(self) -> Guards:
        """The guards; None where there is none."""
        return self.file.guards

    def flattened(self) -> dict[str, Any]:
        """One config without `extends` that means the same; what a run keeps as ``resolved.yaml``."""
        data: dict[str, Any] = plain(self.tree)
        data.pop("version", None)
        return {"version": VERSION} | data


def empty_config() -> Config:
    """A config without a single rule, for questions about a model alone."""
    tree = Table({}, NOWHERE)
    stages: dict[str, tuple[Rule, ...]] = dict.fromkeys(STAGES, ())
    return Config(Path(), (), {}, (), (), tree, stages)


def load_config(*paths: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a config. Several files count as one that extends the earlier ones.

    Raises:
        ConfigError: the config has errors; all of them are in it, sorted by place.
        UsageError: a file cannot be read, or none is named.
    """
    if not paths:
        raise UsageError("no config file is named")
    for path in paths:
        if not isinstance(path, (str, os.PathLike)):
            raise UsageError(f"a config is named by the path of its file (got {type(path).__name__})")
    if isinstance(overrides, str):
        raise UsageError(
            f"overrides must be a list of texts (got the text '{overrides}')",
            hint=f"pass overrides=['{overrides}']",
        )
    findings = Findings()
    loader = Loader(findings)
    for path in paths:
        loader.add(Path(path))
    if loader.unread:  # what is missing would make good names look unknown
        findings.raise_if_errors()
    tree = apply_overrides(loader.merged(), overrides, findings)
    tree, tables = with_tables(tree, findings)
    refuse_too_many(tree, findings)
    tree, broken = _validated(tree, findings)
    stages = _stages(tree, broken, findings)
    _check_guards(tree, findings)
    if not findings.errors:  # what was meant by a section with an error is not known
        _check_target(tree, stages, findings)
    _check_use(tree, stages, findings, Path(paths[-1]))
    findings.raise_if_errors()
    return Config(
        path=Path(paths[0]),
        files=(*loader.files, *tables),
        sources=findings.sources,
        overrides=tuple(overrides),
        warnings=findings.warnings,
        tree=tree,
        stages=stages,
    )


def _validated(tree: Table, findings: Findings) -> tuple[Table, frozenset[int]]:
    """The tree to go on with, and what in it is known to be wrong.

    A misspelt section is read as what it was meant to be, so that what it defines is not missed elsewhere.
    """
    data = plain(tree)
    data["version"] = VERSION  # of every file, checked where it was read
    try:
        file_validator().validate_python(data)
    except ValidationError as error:
        translator = Translator(tree, findings)
        translator.report(error)
        for wrong, right in translator.meant.items():
            if len(wrong) == 1 or wrong[:-1] == ("qconfig",):
                tree = renamed(tree, wrong, str(right[-1]))
        return tree, frozenset(translator.broken)
    return tree, frozenset()


def _stages(tree: Table, broken: frozenset[int], findings: Findings) -> dict[str, tuple[Rule, ...]]:
    named = tree.get("qconfigs")
    checker = SlotChecker(findings)
    stages: dict[str, tuple[Rule, ...]] = {}
    for stage in STAGES:
        table = named if isinstance(named, Table) else Table({}, tree.place)
        unread = (named is not table and named is not None) or table.place in findings.doubled
        reader = QConfigReader(table, stage, findings, checker, broken, unread)
        reader.check_named()
        stages[stage] = build_rules(tree, reader, findings)
    return stages


def _check_guards(tree: Table, findings: Findings) -> None:
    ops = as_table(as_table(tree.get("guards")).get("ops"))
    for pattern, entry in ops.entries.items():
        check_pattern("module_name", pattern, entry.key_place, findings)


def _check_target(tree: Table, stages: Mapping[str, Sequence[Rule]], findings: Findings) -> None:
    """Refuse what the target of the export takes nowhere, unless the config says what to do about it."""
    values = plain(as_table(tree.get("export")))
    profile = PROFILES.get(str(values.get("target")))
    if profile is None or values.get("unsupported", "error") != "error":
        return
    for rules in stages.values():
        check_target(profile, rules, findings)


def _check_use(tree: Table, stages: Mapping[str, Sequence[Rule]], findings: Findings, path: Path) -> None:
    if findings.errors or any(rule.spec or rule.inherit for rules in stages.values() for rule in rules):
        return
    entry = tree.entries.get("qconfig")
    place = entry.key_place if entry else Place(str(path), 1)
    advice = "add a rule, for example `global: w8a8` under `qconfig`"
    findings.warning("QC203", "this config quantizes nothing", place, help=advice)
