"""What the schema asks of values beyond their types: which form one has, and what two say about each other.

These are plain functions, so that checking a config does not need the models (see `compiled`).
"""

from __future__ import annotations

from typing import Any

from quantcfg.config.refusals import refuse

RULE_KEYS = frozenset(("use", "optional", "expect", "subclasses"))


def kind_of_value(value: Any) -> str | None:
    """The form of a qconfig: a name, null, or fields written out."""
    if value is None:
        return "float"
    if isinstance(value, str):
        return "name"
    return "fields" if isinstance(value, dict) else _form_of_model(value)


def kind_of_staged(value: Any) -> str | None:
    """The same for a qconfig that may differ by stage."""
    if isinstance(value, dict) and ("calib" in value or "qat" in value):
        return "stages"
    return kind_of_value(value)


def kind_of_rule(value: Any) -> str | None:
    """The same for the value of a rule."""
    if isinstance(value, dict) and not RULE_KEYS.isdisjoint(value):
        return "rule"
    return kind_of_staged(value)


def kind_of_template(value: Any) -> str:
    """The form of a template: its name alone, or the one that has parameters."""
    has_parameters = isinstance(value, dict) or _form_of_model(value) == "sensitive"
    return "sensitive" if has_parameters or value == "sensitive_ops" else "name"


def kind_of_table(value: Any) -> str:
    """The form of a sensitivity table: the name of a file, or its rows."""
    return "file" if isinstance(value, str) else "rows"


def _form_of_model(value: Any) -> str | None:
    return getattr(value, "form", None)


def one_length_of_calibration(section: Any) -> Any:
    """Batches and samples exclude each other."""
    if section.batches is not None and section.samples is not None:
        refuse("samples", "`batches` and `samples` both say how long to calibrate", "keep one of them")
    return section


def compares_something(section: Any) -> Any:
    """What `compare` needs, and what needs it."""
    if section.compare is not None and len(set(section.compare)) < len(section.compare):
        refuse("compare", "`compare` names an observer twice", "name each once")
    for name in ("compare_by", "compare_per"):
        if section.compare is None and name in section.model_fields_set:
            refuse(name, f"`{name}` has no meaning without `compare`", "add `compare: [min_max, mse]`")
    return section


def one_number_of_ops(section: Any) -> Any:
    """A number of sensitive ops or a share of them, and one of the two."""
    if section.topk is None and section.ratio is None:
        refuse("topk", "`sensitive_ops` needs `topk` or `ratio`", "say how many ops it takes: `topk: 10`")
    if section.topk is not None and section.ratio is not None:
        refuse("ratio", "`topk` and `ratio` both say how many ops to take", "keep one of them")
    return section


def one_length_of_training(section: Any) -> Any:
    """Epochs and steps exclude each other."""
    if section.steps is not None and "epochs" in section.model_fields_set:
        refuse("steps", "`epochs` and `steps` both say how long to train", "keep one of them")
    return section


def momentum_of_nesterov(section: Any) -> Any:
    """What torch.optim.SGD asks of Nesterov momentum."""
    if section.nesterov and (section.momentum <= 0 or section.dampening != 0):
        refuse("nesterov", "`nesterov` needs a momentum and no dampening", "set `momentum: 0.9`")
    return section
