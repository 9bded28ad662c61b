"""Values of which only the ratios matter: exponentials, and probabilities, that are divided by their sum.

So do those of which only the logarithm is taken: those of a probability near 1, and of what is left of it to
1, say, whose quotient goes from nothing to thousands.

A softmax that is written out takes the exponentials of all rows, which lie orders of magnitude apart, and
probabilities of which most are masked afterwards may all be small: on one grid such a row is 0, and 0 / 0.
A softmax of which whole rows are added up is no such: its sums are about 1, and to divide by them mends what
was rounded before.
"""

from __future__ import annotations

from heapq import heappop, heappush

from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Recording, Site

_REASON = "only its ratios count, for it is divided by its sum: rounded before, what is small would be lost"

_OF_LOGARITHM = "only its logarithm counts: rounded before, what is small would be lost"

_EXPONENTIALS = ("exp", "exp2")
_SOURCES = (*_EXPONENTIALS, "softmax", "softmin", "sigmoid")
_INVERSES = ("reciprocal", "rdiv")
_CARRIERS = frozenset({
    "sum", "cumsum", "add", "mul", "masked_fill", "where", "clamp", "topk", "nan_to_num", "index_add",
    "scatter_add", *_INVERSES,
})  # fmt: skip
_SOFTMAXES = ("softmax", "softmin")
_WHOLE = ("add", "unsqueeze", "to", "float", "detach", *_INVERSES)  # nothing of a row is lost, or counts less
_LOGARITHMS = ("log", "log2", "log10", "logit")
_ENDS = (*_LOGARITHMS, "normalize")
_QUOTIENTS = (*_SOURCES, *_INVERSES, "div", "rsub")
_SHIFTS = ("add", "sub", "mul")
_GREATEST = ("max", "amax", "maximum", "logsumexp")


def kept_for_ratios(recording: Recording) -> dict[int, str]:
    """The sites, from an exponential or a probability on, before its division by its own sum: why float."""
    sources = (site for site in recording.sites if site.op in _SOURCES and site.data)
    divided = {index: _REASON for source in sources for index in _before_division(recording, source)}
    return dict.fromkeys(_before_logarithm(recording), _OF_LOGARITHM) | divided


def _before_logarithm(recording: Recording) -> set[int]:
    """The sites, from a probability or a quotient on, of which nothing but the logarithm is read."""
    logged: set[int] = set()
    for site in reversed(recording.sites):
        readers = _readers(recording, site)
        ends = all(index in logged or recording.sites[index].op in _LOGARITHMS for index in readers)
        if readers and ends and _scales(recording, site) and recording.returned.isdisjoint(site.outputs):
            logged.add(site.index)
    behind: set[int] = set()
    for index in sorted(logged):
        site = recording.sites[index]
        producers = (recording.producer(operand.value) for operand in site.data)
        if site.op in _QUOTIENTS or any(p is not None and p.index in behind for p in producers):
            behind.add(index)
    return behind


def _scales(recording: Recording, site: Site) -> bool:
    """Whether a site only changes the sizes of what it reads, which is one activation, or divides two."""
    if site.op in _SHIFTS:
        return sum(recording.values[operand.value].live for operand in site.data) == 1
    return site.kind in (OpKind.MOVE, OpKind.CLIP) or site.op in _QUOTIENTS or site.op == "sum"


def _before_division(recording: Recording, source: Site) -> list[int]:
    """``source`` and the sites between it and the divisions that are its only use; none if it has others."""
    within, inverses, passed, ended = set(source.outputs), set[int](), [source.index], False
    waiting = _readers(recording, source)
    while waiting:
        reader = recording.sites[heappop(waiting)]
        read = {operand.value for operand in reader.data if recording.values[operand.value].live}
        if reader.index in passed:
            continue
        if read <= within and _is_end(reader, read, inverses):
            ended = True
            continue
        carries = reader.kind is OpKind.MOVE or reader.op in _CARRIERS
        multiplied = reader.kind is OpKind.GEMM and _is_unbounded(recording, source)
        if not (multiplied or (carries and read <= within)) or recording.returned.intersection(
            reader.outputs
        ):
            return []
        passed.append(reader.index)
        within.update(reader.outputs)
        if reader.op in _INVERSES:
            inverses.update(reader.outputs)
        for index in _readers(recording, reader):
            heappush(waiting, index)
    return passed if ended and not _adds_whole_rows(recording, source, passed[1:]) else []


def _adds_whole_rows(recording: Recording, source: Site, passed: list[int]) -> bool:
    """Whether the sums are of whole rows of a softmax, each scaled by no more than a parameter."""
    if source.op not in _SOFTMAXES or source.dim is None:
        return False
    sites = [recording.sites[index] for index in passed]
    return all(
        site.op in _WHOLE
        or (site.op == "sum" and site.dim == source.dim)
        or (site.op == "mul" and _is_scaled_by_parameters(recording, site))
        for site in sites
    )


def _is_scaled_by_parameters(recording: Recording, site: Site) -> bool:
    """Whether a product is with a parameter: a mask of booleans is no operand that is written down."""
    values = [recording.values[operand.value] for operand in site.data]
    return len(values) == 2 and all(value.live or (value.fixed and value.learned) for value in values)


def _readers(recording: Recording, site: Site) -> list[int]:
    return sorted({index for value in site.outputs for index in recording.values[value].consumers})


def _is_end(reader: Site, read: set[int], inverses: set[int]) -> bool:
    quotient = reader.op == "div" and len(read) == 2
    product = reader.op == "mul" and len(read & inverses) == 1 and len(read) == 2
    return quotient or product or reader.op in _ENDS


def _is_unbounded(recording: Recording, source: Site) -> bool:
    """Whether the rows of an exponential differ in size: from none was its greatest value subtracted."""
    if source.op not in _EXPONENTIALS:
        return False
    exponent = recording.producer(_unmoved(recording, source.data[0].value))
    if exponent is None or exponent.op != "sub" or len(exponent.data) != 2:
        return True
    greatest = recording.producer(_unmoved(recording, exponent.data[1].value))
    return greatest is None or greatest.op not in _GREATEST


def _unmoved(recording: Recording, value: int) -> int:
    return recording.followed(value, lambda site: site.kind is OpKind.MOVE)
