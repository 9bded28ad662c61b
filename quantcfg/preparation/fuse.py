"""Chains of ops that a chip runs as one: only the end of a chain is quantized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Recording, Site

_FUSED_ACTIVATIONS = frozenset({"relu", "relu6", "hardtanh"})
_DROPOUTS = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"})
_GEMMS = ("conv", "linear")


@dataclass(frozen=True, slots=True)
class Chain:
    """Sites, in order, of one fused chain, and the batch norm that can be folded into its GEMM."""

    sites: tuple[int, ...]
    batch_norm: int | None = None

    @property
    def end(self) -> int:
        """The last site: what it makes is what is quantized."""
        return self.sites[-1]

    @property
    def carrier(self) -> int:
        """The site that the output quantizer belongs to: the end, or the GEMM where a batch norm is the end.

        Folding takes the batch norm away; its quantizer keeps one name whether it is folded or kept.
        """
        return self.sites[0] if self.end == self.batch_norm and len(self.sites) == 2 else self.end


def find_chains(recording: Recording, eligible: Sequence[bool], *, with_add: bool = True) -> list[Chain]:
    """Chains of GEMM [+ batch norm] [+ add] [+ ReLU], add [+ ReLU] and batch norm [+ ReLU].

    A dropout or a sum with 0 inside a chain belongs to it: nothing is left of it in a deployment.

    ``eligible[i]`` says that site ``i`` may be part of one: a rule gives it a qconfig, and nothing that it is
    keeps it in float. A value that anything else reads ends a chain, and so does a batch norm
    that cannot be folded: no chip has one behind its accumulator. Without ``with_add`` a GEMM ends before an
    add: not every target adds to an accumulator.
    """
    taken: set[int] = set()
    chains = []
    for starts in (_is_gemm, _is_batch_norm, _is_addition):
        for site in recording.sites:
            if starts(site) and eligible[site.index] and site.index not in taken:
                chain = _grow(recording, site, eligible, taken, with_add=with_add)
                if len(chain.sites) > 1:
                    taken.update(chain.sites)
                    chains.append(chain)
    return sorted(chains, key=lambda chain: chain.sites[0])


def _grow(
    recording: Recording, start: Site, eligible: Sequence[bool], taken: set[int], *, with_add: bool
) -> Chain:
    sites, batch_norm = [start.index], None
    last = start
    joins = [_is_batch_norm, _is_add] if with_add else [_is_batch_norm]
    steps = [*joins, _is_activation] if _is_gemm(start) else [_is_activation]
    for accepts in steps:
        between, follower = _follower(recording, last)
        if (
            follower is None
            or not accepts(follower)
            or not eligible[follower.index]
            or follower.index in taken
            or follower.index in recording.unfoldable
        ):
            continue
        if _is_batch_norm(follower):
            batch_norm = follower.index
        sites += [*between, follower.index]
        last = follower
    return Chain(tuple(sites), batch_norm)


def _follower(recording: Recording, site: Site) -> tuple[list[int], Site | None]:
    """The one site that reads what ``site`` makes, and what vanishes on the way to it.

    A batch norm behind a dropout has statistics of what the dropout leaves: it does not follow.
    """
    between: list[int] = []
    while len(site.outputs) == 1:
        follower = recording.sole_consumer(site.outputs[0])
        if follower is None or not vanishes(follower):
            return between, None if between and follower and _is_batch_norm(follower) else follower
        between.append(follower.index)
        site = follower
    return between, None


def fuses_with(first: Site, second: Site) -> bool:
    """Whether ``second`` may follow ``first`` in a chain, as far as the two alone say."""
    if _is_gemm(first):
        return _is_batch_norm(second) or _is_add(second) or _is_activation(second)
    return (_is_batch_norm(first) or _is_addition(first)) and _is_activation(second)


def vanishes(site: Site) -> bool:
    """Whether a site does nothing in evaluation: a dropout, or a sum with 0."""
    return site.op in _DROPOUTS or (site.op == "add" and site.kind is OpKind.MOVE)


def _is_gemm(site: Site) -> bool:
    return site.kind is OpKind.GEMM and site.op.startswith(_GEMMS) and bool(site.weights)


def _is_batch_norm(site: Site) -> bool:
    return site.op == "batch_norm"


def _is_add(site: Site) -> bool:
    """Whether a site adds two tensors, of which one may be what a GEMM makes."""
    return site.op == "add" and len(site.data) == 2


def _is_addition(site: Site) -> bool:
    """Whether a site adds anything, a number as well: ``relu6(x + 3)``."""
    return site.op == "add" and not vanishes(site)


def _is_activation(site: Site) -> bool:
    return site.op in _FUSED_ACTIVATIONS
