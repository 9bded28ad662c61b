"""Small differences of large numbers, of which a root is taken, and matrices that are decomposed.

A variance may be written out as the mean of the squares less the square of the mean: rounded before they are
subtracted, what is left is noise, and its root not a number where it falls below 0. A matrix may be nearly
singular: rounded, it is none that can be decomposed.
"""

from __future__ import annotations

from collections.abc import Iterable

from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Recording, Site, Value

_DIFFERENCE = (
    "part of a small difference of large numbers, of which the root, the inverse or the least is taken"
)
_MATRIX = "part of a matrix that is decomposed or inverted: on a grid it may be singular"

_ROOTS = ("sqrt", "rsqrt", "pow", "reciprocal", "rdiv")
_SQUARES = ("pow", "square", "mul")
_SHIFTS = ("add", "mul", "div")
_MEANS = (
    "mean", "sum", "div", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d",
    "scatter_reduce", "scatter_add", "index_add",
)  # fmt: skip
_WEIGHTS = ("softmax", "exp")
_DECOMPOSED = frozenset({
    "cholesky", "inv", "inverse", "pinv", "pinverse", "solve", "lstsq", "eig", "eigh", "eigvalsh", "svd",
    "svdvals", "qr", "lu", "lu_factor", "det", "logdet", "slogdet",
})  # fmt: skip


def kept_for_roots(recording: Recording) -> dict[int, str]:
    """The sites that make such a variance or matrix, from what it is made of on: why float."""
    differences, matrices = set[int](), set[int]()
    for site in recording.sites:
        if site.op.removeprefix("linalg_").removesuffix("_ex") in _DECOMPOSED and site.data:
            matrices |= recording.made_of([site.data[0].value], through=_makes_matrix)
        elif site.op == "sub" and len(recording.live(site)) > 1 and (kept := _kept(recording, site)):
            differences |= recording.made_of((operand.value for operand in site.data), through=_makes_mean)
            differences.update(kept)
    return _makers(recording, matrices, _MATRIX) | _makers(recording, differences, _DIFFERENCE)


def _makers(recording: Recording, values: Iterable[int], reason: str) -> dict[int, str]:
    makers = (recording.values[value].producer for value in values)
    return {maker: reason for maker in makers if maker is not None}


def _kept(recording: Recording, site: Site) -> list[int]:
    """A difference and what follows up to a root; none where it is used for anything else."""
    if _is_for_the_least(recording.values[site.outputs[0]]):
        return [site.outputs[0]]
    square = recording.producer(recording.unmoved(site.data[1].value))
    return _up_to_root(recording, site) if square is not None and square.op in _SQUARES else []


def _up_to_root(recording: Recording, site: Site) -> list[int]:
    """A difference and what constants make of it before the root; none where others read it."""
    passed = [site.outputs[0]]
    while (reader := recording.sole_consumer(passed[-1])) is not None:
        if reader.op in _ROOTS or _divides(reader, passed[-1]):
            return passed
        shifts = reader.op in _SHIFTS or reader.kind in (OpKind.MOVE, OpKind.CLIP)
        if not shifts or len(recording.live(reader)) != 1:
            return []
        passed.append(reader.outputs[0])
    return []


def _is_for_the_least(value: Value) -> bool:
    """Whether nothing but the least is looked for: of squared distances to the codes of a book, say."""
    return bool(value.asked) and set(value.asked) <= {"argmin"} and not value.consumers


def _divides(reader: Site, value: int) -> bool:
    return reader.op == "div" and len(reader.data) == 2 and reader.data[1].value == value


def _makes_mean(maker: Site, reader: Site | None) -> bool:
    """What is squared is an activation, or a mean: what makes an activation is no part of this."""
    if reader is not None and reader.op in _WEIGHTS:
        return False
    if maker.kind is OpKind.MOVE or maker.op in (*_MEANS, "softmax"):
        return True
    squared = reader is not None and reader.op in _SQUARES and len({o.value for o in reader.data}) == 1
    return maker.op in _SQUARES and not squared


def _makes_matrix(maker: Site, reader: Site | None) -> bool:
    """Up to the product of the activations that it is made of, or the exponential of their distances."""
    if reader is not None and (reader.kind is OpKind.GEMM or reader.op in _WEIGHTS):
        return False
    computes = maker.op in (*_SHIFTS, *_MEANS, "sub", "neg", "exp")
    return computes or maker.kind is OpKind.MOVE or (maker.kind is OpKind.GEMM and not maker.weights)
