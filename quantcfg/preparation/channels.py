"""Which axis of a weight its output channels are on: the one that a product does not sum over."""

from __future__ import annotations

from collections.abc import Sequence

from quantcfg.preparation.record import Recording, Site, Slot

Shape = tuple[int, ...]

_PRODUCTS = frozenset({
    "matmul", "rmatmul", "mm", "mv", "bmm", "addmm", "addmv", "baddbmm", "addbmm",
    "grouped_mm", "_grouped_mm",
})  # fmt: skip
_LEFT: dict[str, tuple[int | str, ...]] = {
    **dict.fromkeys(("addmm", "addmv", "baddbmm", "addbmm"), (1, "mat1", "mat", "batch1")),
    "rmatmul": (1, "other"),
}
_FIRST = (0, "input", "mat1", "self")


def channel_axis(recording: Recording, site: Site, slot: Slot) -> int:
    """The axis of the output channels of the weight at ``slot``; one too many where all are summed over.

    That of the op; in a matrix product the rows of what stands on the left and the columns of what stands on
    the right; in an einsum the last axis that is the weight's alone, or else the last that is left.
    """
    if slot[0] in site.spec.weights:
        axis = site.spec.weights[slot[0]]
        assert axis is not None
        return axis
    if site.equation:
        return _of_einsum(recording, site, slot)
    if site.op not in _PRODUCTS:
        return 0
    weight = next(operand for operand in site.weights if operand.slot == slot)
    last = len(recording.values[weight.value].shape) - 1
    return last - 1 if slot[0] in _LEFT.get(site.op, _FIRST) else last


def _of_einsum(recording: Recording, site: Site, slot: Slot) -> int:
    slots = sorted(operand.slot for operand in (*site.data, *site.weights))
    operands = {operand.slot: operand.value for operand in (*site.data, *site.weights)}
    shapes = [recording.values[operands[each]].shape for each in slots]
    terms, output = axes_of(site.equation, shapes)
    own = terms[slots.index(slot)]
    others = {axis for each, term in zip(slots, terms, strict=False) if each != slot for axis in term}
    left = [axis for axis in own if axis in output]
    channels = [axis for axis in left if axis not in others] or left
    return own.index(channels[-1]) if channels else len(own)


def axes_of(equation: str, shapes: Sequence[Shape]) -> tuple[list[list[str]], list[str]]:
    """The axes of each operand of an einsum, and of its result; what dots stand for counts from the right."""
    told, arrow, result = equation.replace(" ", "").partition("->")
    terms = [_axes(term, len(shape)) for term, shape in zip(told.split(","), shapes, strict=False)]
    dots = max((axis for term in terms for axis in term if axis.isdigit()), key=int, default="0")
    if arrow:
        return terms, _axes(result, len(result.replace("...", "")) + int(dots) * ("..." in result))
    named = [axis for term in terms for axis in term]
    return terms, sorted(axis for axis in named if axis.isdigit() or named.count(axis) == 1)


def _axes(term: str, num_axes: int) -> list[str]:
    before, dots, after = term.partition("...")
    left_over = num_axes - len(before) - len(after) if dots else 0
    return [*before, *(str(number) for number in range(left_over, 0, -1)), *after]
