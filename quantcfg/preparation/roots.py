"""Small differences of large numbers, of which a root is taken, and matrices that are decomposed.

A variance may be written out as the mean of the squares less the square of the mean: rounded before they are
subtracted, what is left is noise, and its root not a number where it falls below 0. A matrix may be nearly
singular: rounded, it is none that can be decomposed.
"""

from __future__ import annotations

from collections.abc import Callable

from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Recording, Site, Value

_DIFFERENCE = (
    "part of a small difference of large numbers, of which the root, the inverse or the least is taken"
)
_MATRIX = "part of a matrix that is decomposed or inverted: on a grid it may be singular"

_ROOTS = ("sqrt", "rsqrt", "pow", "reciprocal", "rdiv")
_SQUARES = ("pow", "square", "mul")
_SHIFTS = ("add", "mul", "div")
_MEANS = ("mean", "sum", "div", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d")
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
            _add_maker(recording, site.data[0].value, matrices, _makes_matrix)
        elif site.op == "sub" and _live(recording, site) > 1 and (kept := _kept(recording, site)):
            differences.update(kept)
            for operand in site.data:
                _add_maker(recording, operand.value, differences, _makes_mean)
    return dict.fromkeys(sorted(matrices), _MATRIX) | dict.fromkeys(sorted(differences), _DIFFERENCE)


def _kept(recording: Recording, site: Site) -> list[int]:
    """A difference and what follows up to a root; none where it is used for anything else."""
    if _is_for_the_least(recording.values[site.outputs[0]]):
        return [site.index]
    return _up_to_root(recording, site) if _subtracts_a_square(recording, site) else []


def _subtracts_a_square(recording: Recording, site: Site) -> bool:
    value = recording.followed(site.data[1].value, lambda maker: maker.kind is OpKind.MOVE)
    maker = recording.producer(value)
    return maker is not None and maker.op in _SQUARES


def _live(recording: Recording, site: Site) -> int:
    return len({o.value for o in site.data if recording.values[o.value].live})


def _up_to_root(recording: Recording, site: Site) -> list[int]:
    """``site`` and what constants do to it before the root; none where others read it."""
    passed: list[int] = []
    while _live(recording, site) == 1 or not passed:
        passed.append(site.index)
        reader = recording.sole_consumer(site.outputs[0])
        if reader is None:
            return []
        if reader.op in _ROOTS or _divides(reader, site):
            return passed
        if reader.op not in _SHIFTS and reader.kind not in (OpKind.MOVE, OpKind.CLIP):
            return []
        site = reader
    return []


def _is_for_the_least(value: Value) -> bool:
    """Whether nothing but the least is looked for: of squared distances to the codes of a book, say."""
    return bool(value.asked) and set(value.asked) <= {"argmin"} and not value.consumers


def _divides(reader: Site, site: Site) -> bool:
    return reader.op == "div" and len(reader.data) == 2 and reader.data[1].value == site.outputs[0]


def _add_maker(
    recording: Recording, value: int, found: set[int], makes: Callable[[Site, Site | None], bool]
) -> None:
    """Add what makes a value, and what makes that, as long as it ``makes`` such for the one added before."""
    waiting: list[tuple[int, Site | None]] = [(value, None)]
    while waiting:
        value, reader = waiting.pop()
        maker = recording.producer(value)
        if maker is None or maker.index in found or not makes(maker, reader):
            continue
        found.add(maker.index)
        if maker.op not in _WEIGHTS:
            waiting.extend((operand.value, maker) for operand in maker.data)


def _makes_mean(maker: Site, reader: Site | None) -> bool:
    """What is squared is an activation, or a mean: what makes an activation is no part of this."""
    if maker.kind is OpKind.MOVE or maker.op in (*_MEANS, "softmax"):
        return True
    squared = reader is not None and len({operand.value for operand in reader.data}) == 1
    return maker.op in _SQUARES and not (squared and reader is not None and reader.op in _SQUARES)


def _makes_matrix(maker: Site, reader: Site | None) -> bool:
    """Up to the product of the activations that it is made of, or the exponential of their distances."""
    if reader is not None and reader.kind is OpKind.GEMM:
        return False
    computes = maker.op in (*_SHIFTS, *_MEANS, "sub", "neg", "exp")
    return computes or maker.kind is OpKind.MOVE or (maker.kind is OpKind.GEMM and not maker.weights)
