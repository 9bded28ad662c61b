"""Values of which only the ratios matter: exponentials, and probabilities, that are divided by their sum.

A softmax that is written out takes the exponentials of all rows, which lie orders of magnitude apart, and
probabilities of which most are masked afterwards may all be small: on one grid such a row is 0, and 0 / 0.
A softmax of which whole rows are added up is no such: its sums are about 1, and to divide by them mends what
was rounded before.

A running sum of logarithms, as state space models make of their decays, is the logarithm of such values: of
its elements, or of what two of them differ by, the exponentials are taken. It grows with every step, and on a
grid that holds all of it neighbours are the same.
"""

from __future__ import annotations

from heapq import heappop, heappush

from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Recording, Site, Value

_REASON = "only its ratios count, for it is divided by its sum: rounded before, what is small would be lost"
_RUNNING = "a running sum, or what two differ by: rounded before, its exponential would be off by a factor"

_EXPONENTIALS = ("exp", "exp2")
_SOURCES = (*_EXPONENTIALS, "softmax", "softmin", "sigmoid")
_INVERSES = ("reciprocal", "rdiv")
_KEEPING = (OpKind.MOVE, OpKind.CLIP)
_LOGARITHMIC = ("cumsum", "sub", "rsub", "add", "neg", "masked_fill", "where")
_CARRIERS = frozenset({
    "sum", "cumsum", "add", "mul", "masked_fill", "where", "clamp", "topk", "nan_to_num", "index_add",
    "scatter_add", *_INVERSES,
})  # fmt: skip
_SOFTMAXES = ("softmax", "softmin")
_WHOLE = ("add", "unsqueeze", "to", "float", "detach", *_INVERSES)  # nothing of a row is lost, or counts less
_ENDS = ("log", "log2", "log10", "logit", "normalize")
_GREATEST = ("max", "amax", "maximum", "logsumexp")


def kept_for_ratios(recording: Recording) -> dict[int, str]:
    """The sites, from an exponential or a probability on, before its division by its own sum: why float."""
    sources = (site for site in recording.sites if site.op in _SOURCES and site.data)
    divided = {index: _REASON for source in sources for index in _before_division(recording, source)}
    return divided | dict.fromkeys(_running_sums(recording), _RUNNING)


def _running_sums(recording: Recording) -> list[int]:
    """The running sums of which nothing but exponentials is taken, and the sites between these."""

    def lies_between(value: Value) -> bool:
        maker = recording.producer(value.index)
        read = bool(value.consumers) and not value.asked and value.index not in recording.returned
        return read and maker is not None and (maker.kind in _KEEPING or maker.op in _LOGARITHMIC)

    for_exponentials = recording.read_only_by(_EXPONENTIALS, among=lies_between)
    found, passed = set[int](), list[int]()
    for site in recording.sites:
        live = recording.live(site)
        begins = site.op == "cumsum" and bool(live)
        if (begins or not found.isdisjoint(live)) and for_exponentials.issuperset(site.outputs):
            found.update(site.outputs)
            passed.append(site.index)
    return [index for index in passed if not recording.values[recording.sites[index].outputs[0]].mask]


def _before_division(recording: Recording, source: Site) -> list[int]:
    """``source`` and the sites between it and the divisions that are its only use; none if it has others."""
    within, passed, is_divided = set(source.outputs), [source.index], False
    waiting = [reader.index for reader in recording.readers(source)]
    while waiting:
        reader = recording.sites[heappop(waiting)]
        if reader.index in passed:
            continue
        own = within.issuperset(recording.live(reader))
        if own and _divides(recording, reader):
            is_divided = True
            continue
        multiplies = reader.kind is OpKind.GEMM and _is_unbounded(recording, source)
        if not (multiplies or (own and _carries(reader))) or recording.returned.intersection(reader.outputs):
            return []
        passed.append(reader.index)
        within.update(reader.outputs)
        for follower in recording.readers(reader):
            heappush(waiting, follower.index)
    return passed if is_divided and not _adds_whole_rows(recording, source, passed[1:]) else []


def _carries(site: Site) -> bool:
    return site.kind is OpKind.MOVE or site.op in _CARRIERS


def _divides(recording: Recording, site: Site) -> bool:
    """Whether a site divides one activation by another, or takes the logarithm."""
    read = recording.live(site)
    inverses = [value for value in read if (maker := recording.producer(value)) and maker.op in _INVERSES]
    by_inverse = site.op == "mul" and len(inverses) == 1
    return site.op in _ENDS or (len(read) == 2 and (site.op == "div" or by_inverse))


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


def _is_unbounded(recording: Recording, source: Site) -> bool:
    """Whether the rows of an exponential differ in size: from none was its greatest value subtracted."""
    if source.op not in _EXPONENTIALS:
        return False
    exponent = recording.producer(recording.unmoved(source.data[0].value))
    if exponent is None or exponent.op != "sub" or len(exponent.data) != 2:
        return True
    greatest = recording.producer(recording.unmoved(exponent.data[1].value))
    return greatest is None or greatest.op not in _GREATEST
