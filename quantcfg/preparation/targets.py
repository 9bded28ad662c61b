"""The ops of a recording as the rules see them: names, and the classes of the modules around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from quantcfg.config.rules import Classes, Rule, RuleSet, Target
from quantcfg.preparation.names import ancestors
from quantcfg.preparation.record import Recording, Site
from quantcfg.qconfig import QConfig, spec_from_qconfig


def targets_of(model: nn.Module, recording: Recording) -> list[Target]:
    """One target per site, with the chain of its modules from the root to the op itself."""
    classes = classes_of(model)
    scopes = {key: _scope(key[0], calls, classes) for key, calls in recording.within.items()}
    return [_target(site, scopes[site.path, site.call]) for site in recording.sites]


def _scope(path: str, calls: Mapping[str, int], classes: dict[str, Classes]) -> Target:
    """The module at ``path`` with those around it, as a target; a later one of ``calls`` has its own name."""
    links: dict[str, Classes] = {}
    of_one_call = set[str]()
    for around in (*reversed([*ancestors(path)]), path):
        links[around] = classes[around]
        if call := calls.get(around):
            of_one_call.add(f"{around}:{call}")
            links[f"{around}:{call}"] = ((),)
    chain = tuple((name, found[0]) for name, found in links.items())
    return Target(path, chain, tuple(found[1:] for found in links.values()), frozenset(of_one_call))


def _target(site: Site, scope: Target) -> Target:
    """The op beneath its module, by the name that it has in every call and, in a later one, by its own."""
    every_call = site.name.replace(f"{site.path}:{site.call}", site.path) if site.call else site.name
    known = {name for name, _ in scope.chain}
    names = [name for name in dict.fromkeys((every_call, site.name)) if name not in known]
    chain = (*scope.chain, *((name, ()) for name in names))
    bases = (*scope.bases, *(() for _ in names))
    of_one_call = scope.of_one_call.union({site.name} - {every_call})
    return Target(site.name, chain, bases, of_one_call)


def classes_of(model: nn.Module) -> dict[str, Classes]:
    """By path, the spellings of a module's class and of those that it derives from, nearest first."""
    types = {path: type(module) for path, module in model.named_modules()}
    names = {cls: _class_names(cls) for cls in set(types.values())}
    return {path: names[cls] for path, cls in types.items()}


def _class_names(cls: type) -> Classes:
    return tuple(type_names(above) for above in cls.__mro__ if above is not object)


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
