"""The names of op sites and inputs, as rules, plans and quantizers call them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Site
from quantcfg.preparation.tensors import reachable


def name_sites(sites: Iterable[Site], called: Iterable[str]) -> None:
    """Name each site: a leaf module's main op by the module's path, any other by owner, op and ordinal.

    The second and later calls of a module carry ``:1``, ``:2``, ... after its path.

    Args:
        sites: in the order they ran; their names are set.
        called: paths of the modules that ran.
    """
    parents = {ancestor for path in called for ancestor in ancestors(path)}
    groups: dict[tuple[str, int], list[Site]] = {}
    for site in sites:
        groups.setdefault((site.path, site.call), []).append(site)
    for (path, call), group in groups.items():
        owner = f"{path}:{call}" if call else path
        main = _main_site(group) if path and path not in parents else None
        for site in group:
            site.name = owner if site is main else f"{owner}.{site.op}_{site.ordinal}".lstrip(".")


def ancestors(path: str) -> Iterator[str]:
    """Every module around a module, containers that are never called among them."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def _main_site(sites: list[Site]) -> Site | None:
    gemms = [site for site in sites if site.kind is OpKind.GEMM and site.weights]
    makers = [site for site in sites if site.kind not in (OpKind.MOVE, OpKind.CREATE)]
    for candidates in (gemms, makers, sites):
        if len(candidates) == 1:
            return candidates[0]
    return None


def named_inputs(module: nn.Module, args: Any, kwargs: Any) -> Iterator[tuple[str, Any]]:
    """The tensors handed to forward, named by its parameters: ``x``, ``batch.image``, ``boxes.0``."""
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = {**{str(i): arg for i, arg in enumerate(args)}, **kwargs}
    for names, leaf in reachable(dict(bound)):
        yield ".".join(names), leaf
