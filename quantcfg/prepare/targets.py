"""The ops of a recording as the rules see them: names, and the classes of the modules around them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from quantcfg.config.rules import Rule, RuleSet, Target
from quantcfg.prepare.record import Recording, Site
from quantcfg.qconfig import QConfig, spec_from_qconfig


def targets_of(model: nn.Module, recording: Recording) -> list[Target]:
    """One target per site, with the chain of its modules from the root to the op itself."""
    names = {path: type_names(type(module)) for path, module in model.named_modules()}
    chains = {path: _chain(path, names) for path in {site.path for site in recording.sites}}
    return [_target(site, chains[site.path]) for site in recording.sites]


def _chain(path: str, names: dict[str, tuple[str, ...]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    parts = path.split(".") if path else []
    paths = ["", *(".".join(parts[: count + 1]) for count in range(len(parts)))]
    return tuple((prefix, names[prefix]) for prefix in paths)


def _target(site: Site, chain: tuple[tuple[str, tuple[str, ...]], ...]) -> Target:
    own = () if site.name == site.path else ((site.name, ()),)
    return Target(site.name, (*chain, *own))


def type_names(cls: type) -> tuple[str, ...]:
    """Every accepted spelling of a class: where it is defined, where torch exports it, and its bare name."""
    full = f"{cls.__module__}.{cls.__qualname__}"
    exported = [f"torch.nn.{cls.__name__}"] if getattr(torch.nn, cls.__name__, None) is cls else []
    return tuple(dict.fromkeys([full, *exported, cls.__name__]))


def with_attributes(rules: RuleSet, model: nn.Module) -> RuleSet:
    """Add a rule for every ``module.qconfig`` that the user set in code: it beats all that the file says."""
    attributes = tuple(_attribute_rules(model, len(rules.rules)))
    return RuleSet(rules.rules + attributes, rules.sources) if attributes else rules


def _attribute_rules(model: nn.Module, first: int) -> Iterator[Rule]:
    for path, module in model.named_modules():
        if "qconfig" not in module.__dict__:
            continue
        qconfig = module.__dict__["qconfig"]
        if qconfig is not None and not isinstance(qconfig, QConfig):
            continue  # another tool's attribute
        spec = None if qconfig is None else spec_from_qconfig(qconfig, "module.qconfig")
        yield Rule("attribute", path, spec, order=first)
