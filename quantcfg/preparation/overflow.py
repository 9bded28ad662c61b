"""Numbers that have grown beyond all that a grid can hold: products of products, powers, exponentials.

They are told from their values, as masks are, and kept from quantizers as these; but no mask is among them.
"""

from __future__ import annotations

from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Recording, Site

REASON = "grows beyond 1e30 with the example inputs: no grid is of use for such numbers"

_POWERS = ("pow", "square", "exp", "exp2", "expm1", "prod", "cumprod")
_WRITERS = ("masked_fill", "where", "setitem", "index_fill")


def overgrown_in(recording: Recording) -> set[int]:
    """The values marked as masks that nothing but such growth, and what is made of it, has made so large."""
    found = set[int]()
    for value in recording.values:
        site = recording.producer(value.index)
        if not value.mask or site is None:
            continue
        masked = {operand.value for operand in site.data if recording.values[operand.value].mask}
        carried = bool(masked) and found.issuperset(masked) and site.op not in _WRITERS
        if carried or (not masked and _multiplies(site)):
            found.add(value.index)
    return found


def _multiplies(site: Site) -> bool:
    """Whether a site multiplies two tensors, or raises one to a power."""
    product = site.kind is OpKind.GEMM or (site.op == "mul" and len(site.data) == 2)
    return product or site.op in _POWERS
