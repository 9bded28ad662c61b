"""Random rules on random models: what `prepare` installs, against a resolver that knows the docs alone."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quantcfg as qc
from quantcfg.errors import ConfigError
from tests.prepare.random_models import NAMES, random_model
from tests.prepare.slow_resolver import (
    PRESETS,
    Resolved,
    Rule,
    contest,
    is_pattern,
    matches,
    read,
    resolve,
    spellings,
    steps_up,
    walk,
)

NAMED: dict[str, Any] = {
    "mine": {"preset": "w8a8", "activation_qkwargs": {"dtype": "qint10"}},
    "percent": {
        "activation_observer": "percentile",
        "activation_qkwargs": {"percentile": 98.0, "dtype": "qint9"},
    },
    "staged": {"calib": "w4a8", "qat": {"preset": "w8a8", "weight_observer": "mse"}},
}
WHOLE: list[Any] = [
    *PRESETS, None, None, "mine", "staged",
    {"activation_fake_quant": "lsq", "activation_qkwargs": {"dtype": "qint12"}},
    {"preset": "w8a16", "activation_observer": "percentile", "activation_qkwargs": {"percentile": 99.0}},
    {"preset": "percent", "activation_observer": "min_max"},
    {"activation_fake_quant": None}, {"weight_fake_quant": None}, {"weight_observer": "mse"},
    {"calib": "w8a8", "qat": None}, {"calib": {"activation_observer": "percentile"}, "qat": "w8a8_lsq"},
]  # fmt: skip
CHANGES: list[Any] = [
    {"preset": "inherit", "weight_qkwargs": {"dtype": "qint7"}},
    {"preset": "inherit", "activation_qkwargs": {"dtype": "qint14"}},
    {"preset": "inherit", "activation_observer": "percentile"},
    {"preset": "inherit", "activation_fake_quant": None},
]
ATTRIBUTES = {"w8a16": qc.preset_qconfig("w8a16"), "w8a32": qc.preset_qconfig("w8a32"), None: None}
KINDS = {
    "FakeQuantize": "fake_quant", "LearnableFakeQuantize": "lsq", "MinMaxObserver": "min_max", "MSEObserver":
    "mse", "PercentileObserver": "percentile",
}  # fmt: skip
DEFAULTS = {
    "min_max": {"averaging_constant": 0.01},
    "mse": {"averaging_constant": None},
    "percentile": {"averaging_constant": None, "percentile": 99.99},
    "lsq": {"use_grad_scaling": False},
    "fake_quant": {},
}
X = torch.ones(2, 4, 4, 4)


class Case:
    """A model, a config of both stages, and the stage that is looked at."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.draw = random.Random(seed)
        self.path = folder / "config.yaml"
        self.model = random_model(self.draw).eval()
        self.stage = self.draw.choice(["calib", "qat"])
        self.bn = self.draw.choice(["fold", "keep", "freeze"])
        self.types = {name: type(module) for name, module in self.model.named_modules()}
        ran = (name for op in walk(self.model).ops for name in op.around)
        self.names = list(dict.fromkeys(filter(None, [*self.types, *ran])))
        shared, own = self._section(), self._section() if self.draw.random() < 0.4 else {}
        self.file = {"version": 1, "qconfigs": NAMED, "qconfig": shared, self.stage: {"qconfig": own}}
        self.section = _merged(shared, own)
        self.attributes = list(self._set_attributes())

    def _section(self) -> dict[str, Any]:
        draw = self.draw
        section: dict[str, Any] = {"global": draw.choice(WHOLE)} if draw.random() < 0.85 else {}
        classes = {above for cls in self.types.values() for above in cls.__mro__[:-1]}
        types = sorted(name for cls in classes for name in spellings(cls))
        for key, known, most in (("module_type", types, 3), ("module_name", self.names, 6)):
            picked = [draw.choice(known) for _ in range(draw.randint(0, most))]
            patterns = [self._pattern(name) if key == "module_name" else name for name in picked]
            section[key] = {pattern: self._rule(key) for pattern in patterns}
        if draw.random() < 0.35:
            section["templates"] = self._templates()
        return section

    def _pattern(self, name: str) -> str:
        draw, parts = self.draw, name.split(".")
        if draw.random() < 0.05:
            return "re:" + re.escape(name) + draw.choice(["", ".*", r"(\..*)?"])
        for index, part in enumerate(parts if draw.random() < 0.5 else ()):
            either = "{%s,%s}" % tuple(draw.sample([part, draw.choice(NAMES)], 2))  # noqa: UP031  braces
            numbered = re.sub(r"\d+$", "{0..12}", part) if ":" not in part else part
            others = ["*", "**", f"{part[0]}*", "?" * len(part), either, numbered, part, part, part]
            parts[index] = draw.choice(others)
        return ".".join(parts)

    def _rule(self, key: str) -> Any:
        value = self.draw.choice(CHANGES if self.draw.random() < 0.2 else WHOLE)
        option = {"subclasses": True} if key == "module_type" else {"optional": True}
        return {"use": value, **option} if self.draw.random() < 0.6 else value

    def _templates(self) -> list[Any]:
        draw = self.draw
        templates: list[Any] = draw.sample(["high_precision_output", "softmax_int16"], draw.randint(1, 2))
        rows = [[draw.choice(self.names), draw.choice(["activation", "weight"])] for _ in range(4)]
        table = {"name": "sensitive_ops", "table": rows, "topk": 2, "use": draw.choice(["w8a16", CHANGES[1]])}
        return [*templates, table] if draw.random() < 0.5 else templates

    def _set_attributes(self) -> Iterator[Rule]:
        for name in self.draw.sample(list(self.types), self.draw.randint(0, 1)):
            preset = self.draw.choice(list(ATTRIBUTES))
            self.model.get_submodule(name).qconfig = ATTRIBUTES[preset]
            yield Rule("attribute", name, read(preset, NAMED, "calib"))

    def rules(self) -> tuple[list[Rule], list[str]]:
        """The rules and the templates for the oracle."""
        rules, templates = [], []
        for kind in ("global", "module_type", "module_name"):
            given = self.section.get(kind, {})
            for pattern, value in (
                {"": given}.items() if kind == "global" and kind in self.section else given.items()
            ):
                options = value if isinstance(value, dict) and "use" in value else {"use": value}
                rule = {key: options.get(key, False) for key in ("subclasses", "optional")}
                rules.append(Rule(kind, pattern, read(options["use"], NAMED, self.stage), **rule))
        for template in self.section.get("templates", []):
            if isinstance(template, str):
                templates.append(template)
                continue
            chosen = dict.fromkeys(name for name, kind in template["table"] if kind == "activation")
            gives = read(template["use"], NAMED, self.stage)
            rules += [Rule("template", name, gives) for name in list(chosen)[: template["topk"]]]
        return [*rules, *self.attributes], templates

    def prepare(self, file: dict[str, Any] | None = None) -> nn.Module:
        """What the package makes of it."""
        self.path.write_text(json.dumps(file or self.file))
        config = qc.load_config(self.path)
        return qc.prepare(self.model, config, example_inputs=X, stage=self.stage, bn=self.bn)

    def alone(self, section: dict[str, Any]) -> dict[str, Any]:
        """A config with these rules for both stages."""
        return {"version": 1, "qconfigs": NAMED, "qconfig": section}


def _merged(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Key by key; a rule that is given again stands at the end."""
    merged = shared | own
    for key in ("module_type", "module_name"):
        later = own.get(key, {})
        earlier = {name: value for name, value in shared.get(key, {}).items() if name not in later}
        merged[key] = earlier | later
    return merged


def unmatched(case: Case, rules: Sequence[Rule]) -> list[str]:
    """Rules that match nothing, and those of which one alternative does, that may not."""
    ran = {path for op in walk(case.model).ops for path in op.around}
    every = [*case.types, *ran]
    found = []
    for rule in rules:
        if rule.kind == "module_type" and not any(
            steps_up(rule, cls) is not None for cls in case.types.values()
        ):
            found.append(rule.pattern)
        elif rule.kind in ("module_name", "template") and not rule.optional:
            braces = re.search(r"\{([^{}]*,[^{}]*)\}", rule.pattern) if is_pattern(rule.pattern) else None
            words = (
                braces[1].split(",") if braces and any(matches(rule.pattern, path) for path in ran) else []
            )
            each = [rule.pattern.replace(f"{{{braces[1]}}}", word) for word in words] if braces else []
            if not all(any(matches(one, path) for path in every) for one in each or [rule.pattern]):
                found.append(rule.pattern)
    return found


def expected(spec: dict[str, Any]) -> dict[str, Any]:
    """What is to be read off a module that is built as the oracle says."""
    return DEFAULTS[spec["observer"]] | DEFAULTS[spec["fake_quant"]] | spec


def installed(module: Any, keys: Iterable[str]) -> dict[str, Any]:
    """The same of a module that is there."""
    own = {"fake_quant": KINDS[type(module).__name__], "observer": KINDS[type(module.observer).__name__]}
    own |= {"dtype": module.dtype.name, "qscheme": str(module.qscheme).removeprefix("torch.")}
    return {key: own[key] if key in own else getattr(module.observer, key, None) for key in keys} | (
        {"use_grad_scaling": module.use_grad_scaling} if own["fake_quant"] == "lsq" else {}
    )


def compare(prepared: nn.Module, wanted: Resolved) -> None:
    """Every quantizer that is there, and no other; every rule that the plan names."""
    there = qc.fake_quants(prepared)
    readers = {
        name: "input" if name.startswith("input.") else name.rpartition(".input_")[0] for name in there
    }
    inputs = defaultdict(list)
    for name, module in there.items():
        if reader := readers[name]:
            inputs[reader].append(module)
    assert {name for name in there if not readers[name]} == set(wanted.quantizers)
    for name, spec in wanted.quantizers.items():
        assert installed(there[name], expected(spec)) == expected(spec), name
    assert set(inputs) == set(wanted.inputs)
    for reader, specs in wanted.inputs.items():
        found = [installed(*pair) for pair in zip(inputs[reader], map(expected, specs), strict=True)]
        assert found == list(map(expected, specs)), reader
    for row in qc.plan_of(prepared).to_dict()["ops"]:
        named = [str(rule) for _, rule in wanted.named[row["name"]]]
        assert [_plain(row["rule"]), *map(_plain, row["beaten"])] == (named or ["no rule"]), row["name"]


def _plain(rule: str) -> str:
    """A rule without its place in the file."""
    return re.sub(r" \([^()]*:\d+\)$", "", rule)


def check_laws(case: Case, prepared: nn.Module, rules: Sequence[Rule]) -> None:
    """Rules for different ops in another order, without one that wins, with one that matches nothing."""
    before = {name: repr(module) for name, module in qc.fake_quants(prepared).items()}
    permuted = case.prepare(case.alone(case.section | {"module_name": _permuted(case, rules)}))
    assert {name: repr(module) for name, module in qc.fake_quants(permuted).items()} == before

    row = case.draw.choice(qc.plan_of(prepared).to_dict()["ops"])
    winner = re.match(r"(module_\w+) '(.*)'", row["rule"])
    if winner:
        kind, pattern = winner.groups()
        rest = {name: value for name, value in case.section[kind].items() if name != pattern}
        less = qc.plan_of(case.prepare(case.alone(case.section | {kind: rest}))).to_dict()["ops"]
        wins = {other["name"]: _plain(other["rule"]) for other in less}
        assert wins[row["name"]] == _plain((*row["beaten"], "no rule")[0])

    more = {**case.section["module_name"], "nowhere.*": "w8a8"}
    with pytest.raises(ConfigError, match="the rule `nowhere"):
        case.prepare(case.alone(case.section | {"module_name": more}))


def _permuted(case: Case, rules: Sequence[Rule]) -> dict[str, Any]:
    """The rules for names, neighbours that speak of no op in common changed about."""
    found = walk(case.model).ops
    speaks = {r.pattern: {op.name for op in found if contest([r], op, case.types)} for r in rules}
    order = list(case.section["module_name"])
    for index in range(len(order) - 1):
        first, second = order[index : index + 2]
        if not speaks[first] & speaks[second]:
            order[index : index + 2] = second, first
    return {name: case.section["module_name"][name] for name in order}


def check(seed: int, folder: Path) -> None:
    """One random case."""
    case = Case(seed, folder)
    rules, templates = case.rules()
    if missing := unmatched(case, rules):
        with pytest.raises(ConfigError) as caught:
            case.prepare()
        assert {finding.code for finding in caught.value.diagnostics} <= {"QC201", "QC204"}, missing
        return
    prepared = case.prepare()
    compare(prepared, resolve(case.model, rules, templates))
    if seed % 4 == 0:
        check_laws(case, prepared, rules)


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_rules_decide_as_the_docs_say(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 10):
        check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 3000, 100))
def test_many_rules_decide_as_the_docs_say(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 100):
        check(seed, tmp_path)
