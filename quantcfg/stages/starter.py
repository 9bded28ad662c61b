"""A first config for a model, written from its module tree and the ops that ran."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from quantcfg.config.patterns import is_exact
from quantcfg.config.resolved import scalar_text
from quantcfg.config.source import STEERING
from quantcfg.config.suggest import counted
from quantcfg.preparation.ops import COMPUTING
from quantcfg.preparation.targets import type_names
from quantcfg.preparation.templates import TEMPLATES
from quantcfg.stages.survey import Survey

SCHEMA_NAME = "quantcfg.schema.json"
_PLAIN_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)
_YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
_COLUMN = 34
_MAX_LISTED = 24

_HEAD = """\
# yaml-language-server: $schema={schema}
# A first config for {model}: {ops}, {params:,} parameters.
#   {plan}   shows what it does to each op
#   {presets:<{width}}   lists what to write instead of w8a8
version: 1

qconfig:
"""
_CALIB = """
calib:
  nonfinite: error                # a NaN or infinity ends the calibration; skip: left out and counted
  # batches: 64                   # all of calib_data() when neither this nor samples is given
"""
_QAT = """
qat:
  epochs: 1
  optimizer: {name: SGD, lr: 0.0001, momentum: 0.9}
  # scheduler: {name: cosine}
  # bn: freeze                    # fold (default), keep or freeze
"""
_GUARDS = """
# guards:                         # a run that misses one ends with exit code 4
#   quantized_macs: ">= 0.95"
#   metric_drop: {accuracy: "<= 0.01"}
"""


@dataclass(frozen=True, slots=True)
class _Line:
    """One rule as the file writes it, with a remark."""

    key: str
    value: str
    remark: str


def starter_config(surveyed: Survey, reference: str, *, trains: bool, schema: str = SCHEMA_NAME) -> str:
    """The text of a config that runs as it is; what one may want to change stands in it as comments.

    Args:
        surveyed: the model.
        reference: the model as the user names it.
        trains: whether the model file has training data.
        schema: where an editor finds the JSON Schema, relative to the config.
    """
    plan = f"quantcfg plan {_shown(shlex.quote(reference))} CONFIG"
    head = _HEAD.format(
        schema=schema,
        model=_shown(type(surveyed.model).__name__),
        ops=counted(len(surveyed.targets), "op"),
        params=sum(parameter.numel() for parameter in surveyed.model.parameters()),
        plan=plan,
        presets="quantcfg presets",
        width=len(plan),
    )
    qat = _QAT if trains else _commented(_QAT)
    return head + "\n".join(_rules(surveyed)) + "\n" + _CALIB + qat + _GUARDS


def _rules(surveyed: Survey) -> Iterator[str]:
    yield _text("  ", _Line("global", "w8a8", "weights per channel and activations, both in 8 bits"))
    yield "  # module_type:                  # by class, for everything inside; beats global"
    yield from (_text("  #   ", line) for line in _classes(surveyed.model, surveyed))
    outputs, parts = list(_outputs(surveyed)), list(_parts(surveyed))
    section = "  module_name:" if outputs else "  # module_name:"
    yield f"{section:<{_COLUMN - 1}} # by name or pattern; beats module_type"
    yield from (_text("    ", line) for line in outputs)
    yield from (_text("    # " if outputs else "  #   ", line) for line in parts)


def _text(indent: str, line: _Line) -> str:
    return f"{f'{indent}{_key(line.key)}: {line.value}':<{_COLUMN - 1}} # {_shown(line.remark)}"


def _key(name: str) -> str:
    return name if _PLAIN_KEY.fullmatch(name) and name.lower() not in _YAML_WORDS else scalar_text(name)


def _shown(text: str) -> str:
    """A text for a comment, on one line and without what a config must not hold."""
    return STEERING.sub("?", text)


def _classes(model: nn.Module, surveyed: Survey) -> Iterator[_Line]:
    """The classes of modules that own ops themselves."""
    owners = dict.fromkeys(site.path for site in surveyed.recording.sites if site.kind in COMPUTING)
    modules = dict(model.named_modules())
    counts = Counter(_class_name(type(modules[path])) for path in owners if path)
    for name, count in counts.most_common(_MAX_LISTED):
        yield _Line(name, "w8a8", counted(count, "module"))


def _class_name(cls: type) -> str:
    exported = [name for name in type_names(cls) if name.startswith("torch.nn.") and name.count(".") == 2]
    return exported[0] if exported else cls.__name__


def _outputs(surveyed: Survey) -> Iterator[_Line]:
    """The weighted ops that only the outside reads: logits are compared, so 32 bits cost nothing."""
    find, _ = TEMPLATES["high_precision_output"]
    for index in find(surveyed.recording):
        name = surveyed.targets[index].name
        if is_exact(name):
            yield _Line(name, "w8a32", "an output of the model stays in 32 bits")


def _parts(surveyed: Survey) -> Iterator[_Line]:
    """The top of the module tree, below modules that hold nothing but another one."""
    known = {line.key for line in _outputs(surveyed)}
    for path, module in _top(surveyed.model):
        inside = [site for site in surveyed.recording.sites if f"{site.path}.".startswith(f"{path}.")]
        if path in known or not is_exact(path) or not any(site.kind in COMPUTING for site in inside):
            continue
        params = sum(parameter.numel() for parameter in module.parameters())
        remark = f"{_class_name(type(module))}: {counted(len(inside), 'op')}, {params:,} parameters"
        yield _Line(path, "w8a16", remark)


def _top(model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
    prefix, children = "", list(model.named_children())
    while len(children) == 1 and list(children[0][1].children()):
        prefix += f"{children[0][0]}."
        children = list(children[0][1].named_children())
    return [(f"{prefix}{name}", module) for name, module in children[:_MAX_LISTED]]


def _commented(text: str) -> str:
    lines = (line.replace("# ", "", 1) if line.startswith("  # ") else line for line in text.splitlines())
    return "\n".join(f"# {line}" if line else line for line in lines) + "\n"


def names_and_types(surveyed: Survey) -> tuple[list[str], list[str]]:
    """What rules can name: the modules and ops by name, and every spelling of their classes."""
    chains = [pair for target in surveyed.targets for pair in target.chain]
    names = dict.fromkeys(path for path, _ in chains if path)
    return list(names), sorted({name for _, spellings in chains for name in spellings})
