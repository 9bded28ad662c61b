"""Pydantic's errors as findings with a place, in words about the file instead of about Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import ValidationError

from quantcfg.config.collect import MAX_FINDINGS, Findings
from quantcfg.config.compiled import fields_at
from quantcfg.config.foreign import KEYS, native
from quantcfg.config.layers import RULE_TABLES
from quantcfg.config.misplaced import Misplaced, misplaced
from quantcfg.config.nodes import (
    Items,
    Leaf,
    Loc,
    Node,
    as_table,
    bad_leaves,
    describe,
    key_path,
    plain,
    shortened,
    walk,
)
from quantcfg.config.refusals import REFUSED
from quantcfg.config.suggest import distance, listing, nearest
from quantcfg.errors import Place

Error = Mapping[str, Any]

EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
}
BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
KINDS = {
    "activation_observer": ("QC121", "observer"),
    "weight_observer": ("QC121", "observer"),
    "activation_fake_quant": ("QC122", "fake quantize"),
    "weight_fake_quant": ("QC122", "fake quantize"),
    "dtype": ("QC125", "dtype"),
    "qscheme": ("QC125", "qscheme"),
    "templates": ("QC104", "template"),
}
CONDITION_ADVICE = 'write a comparison with a number, such as ">= 0.95"'
SIZE_ADVICE = 'write a comparison with a size in B, KiB, MiB or GiB, such as "<= 24 MiB"'
TABLE_ADVICE = "write {name: sensitive_ops, table: FILE, topk: 10, use: w8a16}"
QCONFIG_FORMS = "a qconfig: the name of a preset, a name under `qconfigs`, null, or a mapping"


@dataclass(frozen=True, slots=True)
class Fault:
    """One of pydantic's errors and what it is about: ``node`` at ``loc``, whose key, if any, is at ``place``.

    ``loc`` leads through the file: it lacks the tags of unions, which are in that of the ``error``.
    """

    error: Error
    loc: Loc
    node: Node
    place: Place


class Translator:
    """Says what pydantic found in one tree."""

    def __init__(self, root: Node, findings: Findings) -> None:
        self.root = root
        self.findings = findings
        self.broken: set[int] = set()
        self.meant: dict[Loc, Loc] = {}
        self.misplaced: Mapping[Loc, Misplaced] = {}
        self._told: set[Misplaced] = set()

    def report(self, error: ValidationError) -> None:
        """Report every error once, those in values that were refused already not at all."""
        errors = error.errors(include_url=False)
        unknown = [item for item in errors if item["type"] == "extra_forbidden"][:MAX_FINDINGS]
        self.meant = {item["loc"]: self._meant(item) for item in unknown}
        self.misplaced = misplaced((item["loc"], self._path(item)) for item in unknown)
        misspelt = set(self.meant.values())
        for item in errors:
            if self.findings.full:
                return
            if (item["type"] != "missing" or item["loc"] not in misspelt) and not self._is_emptied(item):
                self._one(item)

    def _path(self, error: Error) -> tuple[str, ...]:
        """A location in the file, without the tags of unions."""
        return tuple(str(key) for key, _, _ in walk(self.root, error["loc"]))

    def _is_emptied(self, error: Error) -> bool:
        """Whether a section is empty because what belongs in it stands beside it."""
        steps = list(walk(self.root, error["loc"]))
        node, path = (steps[-1][2] if steps else self.root), self._path(error)
        is_empty = isinstance(node, Leaf) and node.value is None
        return is_empty and any(item.home == path for item in self.misplaced.values())

    def is_new(self, item: Misplaced) -> bool:
        """Whether nothing has been said of these keys so far; from then on something has."""
        is_new = item not in self._told
        self._told.add(item)
        return is_new

    def is_doubled(self, loc: Loc) -> bool:
        """Whether a location lies in a section whose key stands there twice: one of them was another key."""
        return any(node.place in self.findings.doubled for _, _, node in walk(self.root, loc[:-1]))

    def _meant(self, error: Error) -> Loc:
        """Where an unknown key would be if it were spelt like the nearest known one."""
        *parent, key = error["loc"]
        return (*parent, nearest(str(key), self.keys_of(parent)) or key)

    def _one(self, error: Error) -> None:
        steps = list(walk(self.root, error["loc"]))
        loc = tuple(key for key, _, _ in steps)
        node = steps[-1][2] if steps else self.root
        self.broken.update(id(node) for _, _, node in steps)
        if isinstance(node, Leaf) and node.bad:
            return
        place = steps[-1][1] if steps else self.root.place
        HANDLERS.get(error["type"], _wrong_type)(self, Fault(error, loc, node, place))

    def keys_of(self, loc: Sequence[str | int]) -> list[str]:
        """The keys that the section at a location of an error has."""
        return fields_at(tuple(loc))


def _unknown_key(translator: Translator, fault: Fault) -> None:
    loc = fault.loc
    if translator.is_doubled(loc):
        return
    key, parent = str(loc[-1]), key_path(loc[:-1])
    keys = translator.keys_of(fault.error["loc"][:-1])
    near = nearest(key, [name for name in keys if name not in _siblings(translator.root, loc)] + keys)
    near = KEYS[key] if KEYS.get(key) in keys else near
    other = translator.misplaced.get(fault.error["loc"])
    within = f" in `{parent}`" if parent else ""
    if other and (near is None or distance(key, near, 2) > 1):
        _misplaced_key(translator, other, within, fault.place)
        return
    translator.findings.error(
        "QC101",
        f"unknown key `{shortened(key)}`{within}",
        fault.place,
        label=f"did you mean `{near}`?" if near else "not a key here",
        notes=(f"keys here: {listing(keys, 12)}",) if keys else (),
        help=f"write `{near}`" if near else _unknown_key_advice(loc, fault.place),
    )


def _unknown_key_advice(loc: Loc, place: Place) -> str:
    if place.file.endswith(".toml") and loc[-3:-2] and loc[-3] in RULE_TABLES:
        return f'quote a name with dots: "{loc[-2]}.{loc[-1]}"'
    return "remove it; a key that starts with `x-` is a free note"


def _misplaced_key(translator: Translator, item: Misplaced, within: str, place: Place) -> None:
    """One finding for all keys of a section that belong into the same other one."""
    if translator.is_new(item):
        what = "unknown key" if len(item.keys) == 1 else "unknown keys"
        summary = f"{what} {listing([f'`{key}`' for key in item.keys])}{within}"
        translator.findings.error("QC101", summary, place, label=item.label, help=item.help)


def _siblings(root: Node, loc: Loc) -> Iterable[str]:
    steps = list(walk(root, loc[:-1]))
    node = steps[-1][2] if steps else root
    return as_table(node).entries


def _missing_key(translator: Translator, fault: Fault) -> None:
    if bad_leaves(fault.node):
        return
    key, parent = fault.error["loc"][-1], key_path(fault.loc)
    where = f" in `{parent}`" if parent else ""
    translator.findings.error(
        "QC102",
        f"the key `{key}` is missing{where}",
        fault.place,
        label=f"`{key}` is missing here",
        help=f"add `{key}:`",
    )


def _wrong_type(translator: Translator, fault: Fault) -> None:
    error, loc, node = fault.error, fault.loc, fault.node
    expected = EXPECTED.get(error["type"], error["msg"][:1].lower() + error["msg"][1:])
    if error["type"] == "union_tag_not_found" and "discriminator" in error.get("ctx", {}):
        if error["ctx"]["discriminator"] == "'name'":
            _missing_name(translator, fault)
            return
        expected = QCONFIG_FORMS
    is_null = isinstance(node, Leaf) and node.value is None
    advice = type_advice(expected, node)
    keys = translator.keys_of(error["loc"]) if expected == "a mapping" else []
    if keys == ["name"] and isinstance(node, Leaf) and isinstance(node.value, str):
        advice = f'write `name = "{node.value}"` in it' if _is_toml(node) else f"write {{name: {node.value}}}"
    if expected == "a text" and loc[0] == "guards":
        advice = _condition_advice(loc)
    if "templates" in loc and expected == "a mapping":
        advice = TABLE_ADVICE
    translator.findings.error(
        "QC103",
        f"`{key_path(loc)}`: expected {expected}, got {describe(node)}",
        fault.place if is_null else node.place,
        label=f"expected {expected}" if len(expected) < 40 else "",
        notes=(f"keys here: {listing(keys, 12)}",) if keys else (),
        help=advice,
    )


def _missing_name(translator: Translator, fault: Fault) -> None:
    """The key that says which of several models a mapping is: absent, or misspelt."""
    for key, entry in as_table(fault.node).entries.items():
        if nearest(key, ["name"]):
            label, advice = "did you mean `name`?", "write `name`"
            summary = f"unknown key `{shortened(key)}` in `{key_path(fault.loc)}`"
            translator.findings.error("QC101", summary, entry.key_place, label=label, help=advice)
            return
    error = {**fault.error, "loc": (*fault.error["loc"], "name")}
    _missing_key(translator, replace(fault, error=error))


def type_advice(expected: str, node: Node) -> str:
    """What to write instead of a value of the wrong type."""
    if isinstance(node, Items) and expected == "a mapping":
        in_yaml, in_toml = (
            "write `name: value` without the `- ` of a list",
            "write `[table]` once, with the names as keys",
        )
        return in_toml if _is_toml(node) else in_yaml
    if not isinstance(node, Leaf):
        return ""
    value = node.value
    if value is None:
        return "remove the key, or give it a value"
    if isinstance(value, str) and expected == "a mapping" and _is_toml(node):
        return "write its keys under a `[table]` of this name, each on a line of its own: `key = value`"
    if isinstance(value, str):
        return _text_advice(expected, value)
    if isinstance(value, float) and expected == "a whole number" and value.is_integer():
        return f"write {int(value)}"
    if expected == "a text" and not isinstance(value, bool):
        return f'write "{value}"'
    if isinstance(value, bool) and "number" in expected:
        return "write the number itself"
    return ""


def _is_toml(node: Node) -> bool:
    return node.place.file.endswith(".toml")


def _text_advice(expected: str, value: str) -> str:
    if "number" in expected and _is_number(value):
        return "remove the quotes"
    words = {"on": "true", "yes": "true", "off": "false", "no": "false", "true": "true", "false": "false"}
    if expected == "true or false" and value.lower() in words:
        return f"write {words[value.lower()]}, without quotes"
    if expected == "a list":
        return f"write [{value}]"
    if expected == "a mapping" and ":" in value:
        return "put a space after the `:`"
    if expected == "a mapping" and " " in value:
        return "is a `:` after a key missing?"
    if expected == "a mapping":
        return "write its keys beneath it, each on a line of its own: `key: value`"
    return ""


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _not_a_choice(translator: Translator, fault: Fault) -> None:
    loc, node = fault.loc, fault.node
    names = [key for key in loc if isinstance(key, str)]
    code, what = KINDS.get(names[-1], ("QC104", ""))
    choices = choices_of(fault.error)
    value = node.value if isinstance(node, Leaf) else None
    near = (native(value, choices) or nearest(value, choices)) if isinstance(value, str) else None
    subject = (
        f"unknown {what} {describe(node)}" if what else f"`{key_path(loc)}`: {describe(node)} is not allowed"
    )
    translator.findings.error(
        code,
        subject.replace("the text ", "", 1),
        node.place,
        label=f"did you mean `{near}`?" if near else "not one of those allowed",
        notes=(f"allowed: {listing(choices, 16)}",),
        help=f"write `{near}`" if near else "",
    )


def choices_of(error: Error) -> list[str]:
    """The values that a literal or the tag of a union allows."""
    expected: str = error["ctx"].get("expected_tags") or error["ctx"]["expected"]
    return [name.strip().strip("'") for name in expected.replace(" or ", ", ").split(",")]


def _unknown_tag(translator: Translator, fault: Fault) -> None:
    key = fault.error["ctx"]["discriminator"].strip("'")
    for _, _, value in walk(fault.node, (key,)):
        if isinstance(value, Leaf) and value.bad:
            return
        _not_a_choice(translator, replace(fault, loc=(*fault.loc, key), node=value))


def _out_of_range(translator: Translator, fault: Fault) -> None:
    bound, word = BOUNDS[fault.error["type"]]
    limit = fault.error["ctx"][bound]
    translator.findings.error(
        "QC105",
        f"`{key_path(fault.loc)}` must be {word} {limit:g}, got {plain(fault.node)}",
        fault.node.place,
        label=f"must be {word} {limit:g}",
    )


def _wrong_length(translator: Translator, fault: Fault) -> None:
    context = fault.error.get("ctx", {})
    wanted = context.get("min_length", context.get("max_length"))
    bound = "at least" if "min_length" in context and "max_length" not in context else "exactly"
    had = context.get("actual_length", 0)
    summary = f"`{key_path(fault.loc)}` must have {bound} {wanted} values, got {had}"
    translator.findings.error("QC105", summary, fault.node.place)


def _wrong_form(translator: Translator, fault: Fault) -> None:
    translator.findings.error(
        "QC105",
        f"`{key_path(fault.loc)}`: {describe(fault.node)} is not a condition",
        fault.node.place,
        help=_condition_advice(fault.loc),
    )


def _condition_advice(loc: Loc) -> str:
    return SIZE_ADVICE if loc[:2] == ("guards", "size") else CONDITION_ADVICE


def _refused(translator: Translator, fault: Fault) -> None:
    context, place = fault.error["ctx"], fault.place
    for _, key_place, _ in walk(fault.node, (context["at"],)):
        place = key_place
    translator.findings.error("QC107", context["summary"], place, help=context["hint"])


Handler = Callable[[Translator, Fault], None]
HANDLERS: dict[str, Handler] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing_key,
    "literal_error": _not_a_choice,
    "union_tag_invalid": _unknown_tag,
    "greater_than": _out_of_range,
    "greater_than_equal": _out_of_range,
    "less_than": _out_of_range,
    "less_than_equal": _out_of_range,
    "too_short": _wrong_length,
    "too_long": _wrong_length,
    "string_pattern_mismatch": _wrong_form,
    REFUSED: _refused,
}
