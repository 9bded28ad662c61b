"""Recognising positions and times, of which only angles, indices and masks are made, and boxes in an image.

A grid of 256 steps turns the angles of a time in thousands, or of a point at high frequencies, into noise,
and points at the next pixel. A box of a large image moves by several; and the number of the image that stands
beside it, where features are pooled, becomes that of another one.
"""

from __future__ import annotations

from quantcfg.preparation import cells
from quantcfg.preparation.record import Recording, Site, Value

REASON = "a position or a time: a grid is too coarse for the angle, index or mask that is made of it"
BOX = "a box in pixels: on a grid it would move, and with it what is pooled from it or suppressed by it"

_ANGLES = ("sin", "cos")
_CASTS = frozenset({"long", "int", "short", "byte", "char", "bool", "to", "type"})
_COMPARISONS = frozenset({"gt", "lt", "ge", "le", "eq", "ne"})
_CHOICES = frozenset({"argmax", "argmin", "argsort", "bucketize", "searchsorted"})
_ENDS = _CASTS | _COMPARISONS | _CHOICES
_POOLED = ("roi_align", "roi_pool")


def positions_in(recording: Recording) -> dict[int, str]:
    """The values that are positions, times or boxes, and why they are on no grid."""
    boxes, positions = _boxes_in(recording), _unlearned_positions_in(recording)
    labels = dict.fromkeys(cells.labelled_in(recording), cells.LABELS)
    points = dict.fromkeys(cells.points_in(recording), cells.REASON)
    return labels | points | dict.fromkeys(boxes, BOX) | dict.fromkeys(positions, REASON)


def _boxes_in(recording: Recording) -> set[int]:
    """Boxes that are pooled from or suppressed, back to the layers that make them, and what comes of them."""
    boxes = {value.index for value in recording.values if "nms" in value.asked and value.shape[1:] == (4,)}
    boxes.update(o.value for site in recording.sites if site.op in _POOLED for o in site.others)
    found = recording.made_of(boxes, through=lambda site, _: _keeps_boxes(site))
    for site in recording.sites:
        live = recording.live(site)
        if live and found.issuperset(live) and _keeps_boxes(site):
            found.update(site.outputs)
    return found


def _keeps_boxes(site: Site) -> bool:
    return site.op in cells.DECODING or site.kind in cells.KEEPING


def _unlearned_positions_in(recording: Recording) -> set[int]:
    """The values without a part of any parameter that are read for an angle, an index or a mask alone."""

    def may_be_one(value: Value) -> bool:
        read = bool(value.consumers or value.asked) and value.index not in recording.returned
        return read and not value.learned and _ENDS.issuperset(value.asked)

    return recording.read_only_by(_ANGLES, among=may_be_one)
