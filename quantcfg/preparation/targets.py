"""The ops of a recording as the rules see them: names, and the classes of the modules around them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from quantcfg.config.rules import Classes, Rule, RuleSet, Target
from quantcfg.preparation.names import ancestors
from quantcfg.preparation.record import Recording, Site
from quantcfg.qconfig import QConfig, spec_from_qconfig


def targets_of(model: nn.Module, recording: Recording) -> list[Target]:
    """One target per site, with the chain of its modules from the root to the op itself.

    The modules around a call are those that it runs in: what two modules hold is inside of each.
    """
    paths = _Paths(model)
    scopes = {key: _scope(calls, paths) for key, calls in recording.within.items()}
    return [_target(site, *scopes[site.path, site.call]) for site in recording.sites]


class _Paths:
    """By which paths modules are held. The first that leads to a module is the one that it is known by."""

    def __init__(self, model: nn.Module) -> None:
        self.classes = classes_of(model)
        self.known: dict[str, str] = {}
        self._all: dict[str, list[str]] = {}
        first: dict[nn.Module, str] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self.known[path] = first.setdefault(module, path)
            self._all.setdefault(self.known[path], []).append(path)

    def of_call(self, running: Iterable[str]) -> str:
        """The path by which the innermost of the modules that are running is held by those around it."""
        held = ""
        for known in running:
            inside = (path for path in self._all[known] if not held or path.startswith(f"{held}."))
            held = next(inside, known)
        return held


def _scope(calls: Mapping[str, int], paths: _Paths) -> tuple[str, Target]:
    """Where a call runs, and the modules around it as a target, with the names that they have in it alone."""
    here = paths.of_call(calls)
    links: dict[str, Classes] = {}
    of_one_call = set[str]()
    for around in (*reversed([*ancestors(here)]), here):
        known = paths.known[around]
        links[known] = paths.classes[known]
        names = {around, f"{known}:{calls[known]}" if calls.get(known) else known} - {known}
        links |= dict.fromkeys(sorted(names), ((),))
        of_one_call |= names
    chain = tuple((name, found[0]) for name, found in links.items())
    bases = tuple(found[1:] for found in links.values())
    return here, Target(here, chain, bases, frozenset(of_one_call))


def _target(site: Site, here: str, scope: Target) -> Target:
    """The op beneath its module, by the name that it has in every call and by those of this call alone."""
    every_call = site.name.replace(f"{site.path}:{site.call}", site.path) if site.call else site.name
    of_this = {f"{here}{every_call.removeprefix(site.path)}", site.name} - {every_call}
    known = {name for name, _ in scope.chain}
    names = [name for name in (every_call, *sorted(of_this)) if name not in known]
    chain = (*scope.chain, *((name, ()) for name in names))
    bases = (*scope.bases, *(() for _ in names))
    return Target(site.name, chain, bases, scope.of_one_call.union(of_this))


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
