"""Small differences of large numbers, of which a root is taken, and matrices that are decomposed.

A variance may be written out as the mean of the squares less the square of the mean: rounded before they are
subtracted, what is left is noise, and its root not a number where it falls below 0. A matrix may be nearly
singular: rounded, it is none that can be decomposed. A distance may be written out as squares less a product.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Recording, Site, Value

_DIFFERENCE = (
    "part of a small difference of large numbers, of which the root, the inverse or the least is taken"
)
_DISTANCE = "part of a distance written out as squares less a product: a small difference of large numbers"
_MATRIX = "part of a matrix that is decomposed or inverted: on a grid it may be singular"

_ROOTS = ("sqrt", "rsqrt", "pow", "reciprocal", "rdiv")
_SQUARES = ("pow", "square", "mul")
_SHIFTS = ("add", "mul", "div", "neg")
_SUMS = ("add", "sub")
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
    """The sites that make such a variance, distance or matrix, from what it is made of on: why float."""
    kept: dict[int, str] = {}
    for site in recording.sites:
        for found, reason in (
            (_matrix(recording, site), _MATRIX),
            (_difference(recording, site), _DIFFERENCE),
            (_distance(recording, site), _DISTANCE),
        ):
            kept |= dict.fromkeys(_makers(recording, found), reason)
    return kept


def _makers(recording: Recording, values: Iterable[int]) -> list[int]:
    makers = (recording.values[value].producer for value in values)
    return [maker for maker in makers if maker is not None]


def _matrix(recording: Recording, site: Site) -> set[int]:
    """The values that the matrix which ``site`` decomposes is made of."""
    if site.op.removeprefix("linalg_").removesuffix("_ex") not in _DECOMPOSED or not site.data:
        return set()
    return recording.made_of([site.data[0].value], through=_makes_matrix)


def _difference(recording: Recording, site: Site) -> set[int]:
    """The values from the means of the variance that ``site`` makes up to its root; or none."""
    if site.op != "sub" or len(recording.live(site)) < 2:
        return set()
    square = recording.producer(recording.unmoved(site.data[1].value))
    kept: list[int] = []
    if _is_for_the_least(recording.values[site.outputs[0]]):
        kept = [site.outputs[0]]
    elif square is not None and square.op in _SQUARES:
        kept = _up_to_root(recording, site, _ROOTS)
    means = recording.made_of(_read(site), through=_makes_mean) if kept else set[int]()
    return means.union(kept)


def _distance(recording: Recording, site: Site) -> set[int]:
    """The values from squares, and a product of what is squared, up to the root of their sum; or none."""
    if site.op not in _SUMS or len(recording.live(site)) < 2:
        return set()
    path = _up_to_root(recording, site, (*_ROOTS, "exp"))
    parts = recording.made_of(path[:1], through=_makes_distance)
    makers = [recording.sites[maker] for maker in _makers(recording, parts)]
    squared = {recording.unmoved(maker.data[0].value) for maker in makers if _is_square(maker)}
    multiplied = {o.value for m in makers if m.kind is OpKind.GEMM for o in (*m.data, *m.weights)}
    doubled = recording.made_of(multiplied, through=lambda maker, _: _scales(maker))
    is_distance = squared.intersection(map(recording.unmoved, multiplied))
    return parts.union(doubled, path) if is_distance else set()


def _is_square(site: Site) -> bool:
    return site.op in ("pow", "square") or (site.op == "mul" and len(site.data) == 2 > len(_read(site)))


def _read(site: Site) -> set[int]:
    return {operand.value for operand in site.data}


def _makes_distance(maker: Site, reader: Site | None) -> bool:
    """The squares and the product that are added up; what is squared or multiplied is no part."""
    if reader is not None and (reader.kind is OpKind.GEMM or _is_square(reader)):
        return False
    sums = maker.kind is OpKind.GEMM or maker.op in (*_SUMS, "sum")
    return sums or _is_square(maker) or _scales(maker)


def _scales(site: Site) -> bool:
    """Whether a site moves what it reads, or shifts or doubles it by a number."""
    return site.kind is OpKind.MOVE or (site.op in _SHIFTS and len(site.data) == 1)


def _up_to_root(recording: Recording, site: Site, roots: Collection[str]) -> list[int]:
    """A difference and what constants make of it before the root; none where others read it."""
    passed = [site.outputs[0]]
    while (reader := recording.sole_consumer(passed[-1])) is not None:
        is_root = reader.op in roots and (reader.exponent is None or reader.exponent < 1)
        if is_root or _divides(reader, passed[-1]):
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
    squared = reader is not None and reader.op in _SQUARES and len(_read(reader)) == 1
    return maker.op in _SQUARES and not squared


def _makes_matrix(maker: Site, reader: Site | None) -> bool:
    """Up to the product of the activations that it is made of, or the exponential of their distances."""
    if reader is not None and (reader.kind is OpKind.GEMM or reader.op in _WEIGHTS):
        return False
    computes = maker.op in (*_SHIFTS, *_MEANS, "sub", "neg", "exp")
    return computes or maker.kind is OpKind.MOVE or (maker.kind is OpKind.GEMM and not maker.weights)
