"""From a qconfig as the file writes it to the fields it stands for, through presets and named qconfigs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache, cached_property

from quantcfg.config.collect import Findings
from quantcfg.config.foreign import FLOAT_WORDS
from quantcfg.config.nodes import Leaf, Node, Table, bad_leaves, describe, shortened
from quantcfg.config.overlay import overlay
from quantcfg.config.presets import PRESETS
from quantcfg.config.slot_checks import SlotChecker
from quantcfg.config.spec import QCONFIG_DEFAULTS, Field, QConfigSpec, make_spec
from quantcfg.config.suggest import nearest
from quantcfg.errors import Place

INHERIT = "inherit"
QKWARGS = ("activation_qkwargs", "weight_qkwargs")
FIELD_NAMES = (*QCONFIG_DEFAULTS, *QKWARGS)


class Broken(Exception):  # noqa: N818  a signal inside the config stack, never seen outside of it
    """A qconfig that cannot be built; why has been reported."""


@dataclass(frozen=True)
class Draft:
    """A qconfig being read: its fields, the label for the plan, and whether it starts from the next rule."""

    fields: dict[str, Field]
    label: str
    inherits: bool = False

    @cached_property
    def spec(self) -> QConfigSpec:
        """The finished qconfig."""
        return make_spec(self.fields, name=self.label)

    @property
    def inherited(self) -> tuple[tuple[str, Field], ...] | None:
        """The changes that it makes to the next rule's qconfig; None where it stands alone."""
        return tuple(self.fields.items()) if self.inherits else None


@cache
def _preset_draft(name: str, stage: str) -> Draft:
    return Draft(PRESETS[name].stage(stage).fields(), name)


@dataclass(slots=True)
class QConfigReader:
    """Reads the qconfigs of one stage. What is ``broken`` was reported; nothing complains about it again.

    ``unread`` says that the section of names has such an error: any name may be one of its.
    """

    named: Table
    stage: str
    findings: Findings
    checker: SlotChecker
    broken: frozenset[int] = frozenset()
    unread: bool = False
    _broken_names: set[str] = field(default_factory=set)
    _cache: dict[str, Draft | None] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)

    def read(self, node: Node) -> Draft | None:
        """A qconfig value; None is float.

        Raises:
            Broken: it has an error, reported.
        """
        if isinstance(node, Leaf) and (node.bad or id(node) in self.broken):
            raise Broken
        if isinstance(node, Leaf) and node.value is None:
            self._refuse_empty(node)
            return None
        if isinstance(node, Leaf) and isinstance(node.value, str):
            return self._name(node.value, node.place, as_base=False)
        if isinstance(node, Table):
            stage = node.get(self.stage)
            return self.read(stage) if stage is not None else self._mapping(node)
        raise Broken

    def _refuse_empty(self, node: Leaf) -> None:
        """A null that nobody wrote is more likely forgotten than meant."""
        if node.empty:
            advice = "write `null` to leave it in float, or the name of a qconfig"
            self.findings.error("QC103", "a qconfig is missing here", node.place, help=advice)
            raise Broken

    def check_named(self) -> None:
        """Read every named qconfig, so that unused ones are checked, too."""
        for name, entry in self.named.entries.items():
            if self.findings.full:
                return
            if name in PRESETS or name == INHERIT:
                self.findings.error(
                    "QC129",
                    f"`{name}` is the name of a preset"
                    if name in PRESETS
                    else f"`{name}` is a reserved name",
                    entry.key_place,
                    help=f"choose another name, such as `my_{name}`",
                )
            try:
                self._named(name)
            except Broken:
                continue

    def _name(self, name: str, place: Place, *, as_base: bool) -> Draft | None:
        if name in self.named.entries:
            return self._use(name, place)
        preset = PRESETS.get(name)
        if preset is None:
            self._unknown(name, place, as_base=as_base)
            raise Broken
        if preset.deprecated_for:
            summary = f"the preset `{name}` is now called `{preset.deprecated_for}`"
            self.findings.warning("QC128", summary, place, help=f"write `{preset.deprecated_for}`")
        return _preset_draft(name, self.stage)

    def _use(self, name: str, place: Place) -> Draft | None:
        if name in self._open:
            chain = " -> ".join([*self._open[self._open.index(name) :], name])
            self.findings.error("QC127", f"named qconfigs go in a circle: {chain}", place)
            self._broken_names.update(self._open)
            raise Broken
        return self._named(name)

    def _named(self, name: str) -> Draft | None:
        if name in self._broken_names:
            raise Broken
        if name not in self._cache:
            self._open.append(name)
            try:
                draft = self.read(self.named.entries[name].node)
            except Broken:
                self._broken_names.add(name)
                raise
            finally:
                self._open.pop()
            self._cache[name] = replace(draft, label=name) if draft else None
        return self._cache[name]

    def _unknown(self, name: str, place: Place, *, as_base: bool) -> None:
        if self.unread:
            return
        names = [*self.named.entries, *PRESETS, INHERIT]
        near = nearest(name, names)
        if near == INHERIT and not as_base:
            help_text = "write `{preset: inherit, ...}` with the fields that change"
        elif name.lower() in FLOAT_WORDS:
            near, help_text = None, "write `null` to leave it in float"
        elif near:
            help_text = f"write `{near}`"
        else:
            help_text = "`quantcfg presets` lists the presets; names of your own stand under `qconfigs`"
        self.findings.error(
            "QC120",
            f"unknown qconfig `{shortened(name)}`",
            place,
            label=f"did you mean `{near}`?"
            if near and near != name
            else "neither a preset nor under `qconfigs`",
            help=help_text,
            cause=name,
        )

    def _mapping(self, table: Table) -> Draft | None:
        base = self._base(table)
        changes = self._changes(table)
        fields = overlay(base.fields, changes)
        label = f"{base.label}*" if changes and not base.label.endswith("*") else base.label
        broken = [key for key, entry in table.entries.items() if self._is_broken(entry.node)]
        unknown = {nearest(key, FIELD_NAMES) or key for key in broken}  # misspelt, it was meant to be that
        if not self.checker.check(fields, changes, inherits=base.inherits, unknown=unknown) or unknown:
            raise Broken
        return Draft(fields, label, base.inherits)

    def _is_broken(self, node: Node) -> bool:
        return id(node) in self.broken or bad_leaves(node)

    def _base(self, table: Table) -> Draft:
        preset = table.get("preset")
        if preset is not None and self._is_broken(preset):
            raise Broken
        if not isinstance(preset, Leaf) or preset.value is None:
            return Draft({}, "custom*")
        if preset.value == INHERIT:
            return Draft({}, INHERIT, inherits=True)
        base = self._name(str(preset.value), preset.place, as_base=True)
        if base is None:
            summary = f"`{preset.value}` is float: there is nothing to start from"
            self.findings.error(
                "QC126", summary, preset.place, help="use null itself, or start from a preset"
            )
            raise Broken
        return base

    def _changes(self, table: Table) -> dict[str, Field]:
        changes: dict[str, Field] = {}
        for key, entry in table.entries.items():
            node = entry.node
            if self._is_broken(node):
                continue
            if key in QKWARGS and isinstance(node, Table):
                for name, item in node.entries.items():
                    changes[f"{key}.{name}"] = self._parameter(f"{key}.{name}", item.node, item.key_place)
            elif isinstance(node, Leaf) and node.empty:
                advice = "write `null` to leave it in float, or remove the key"
                self.findings.error("QC103", f"`{key}` has no value", entry.key_place, help=advice)
                raise Broken
            elif key != "preset" and isinstance(node, Leaf):
                changes[key] = Field(node.value, node.place)
        return changes

    def _parameter(self, name: str, node: Node, key_place: Place) -> Field:
        if not isinstance(node, Leaf):
            self.findings.error(
                "QC103", f"`{name}`: expected a single value, got {describe(node)}", node.place
            )
            raise Broken
        self.checker.key_places[node.place] = key_place
        return Field(node.value, node.place)
