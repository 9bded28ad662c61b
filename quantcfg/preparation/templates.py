"""Templates: refinements of the rules that look at the graph, for the ops that lose most in 8 bits.

A template changes only ops that a type rule or the global rule decided: what the user names, the user gets.
The template `sensitive_ops` is not here: the rows of its table are rules (`quantcfg.config.sensitivity`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from quantcfg.config.kinds import accepted
from quantcfg.config.rules import TIERS, Decision
from quantcfg.config.spec import QConfigSpec
from quantcfg.errors import PrepareError
from quantcfg.preparation.cells import sampled_at
from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.record import Recording, Site

Change = Callable[[QConfigSpec], QConfigSpec]


def with_templates(
    names: Sequence[str], recording: Recording, decisions: Sequence[Decision]
) -> list[Decision]:
    """Apply templates in order; an op that one has changed is left alone by the next.

    Raises:
        PrepareError: there is no template of that name.
    """
    result = list(decisions)
    changed: set[int] = set()
    for name in names:
        if name not in TEMPLATES:
            raise PrepareError(
                f"unknown template '{name}'; known: {', '.join(TEMPLATES)}",
                hint="sensitive_ops needs its table: write it in a config, or pass "
                "get_sensitive_op_qconfig_setter(...) as qconfig_setter"
                if name == "sensitive_ops"
                else "",
            )
        find, change = TEMPLATES[name]
        for index in find(recording):
            decision = result[index]
            if index in changed or decision.spec is None or not _may_refine(decision):
                continue
            result[index] = replace(decision, spec=change(decision.spec))
            changed.add(index)
    return result


def _may_refine(decision: Decision) -> bool:
    return decision.winner is None or decision.winner.tier <= TIERS["module_type"]


def _high_precision_outputs(recording: Recording) -> Iterator[int]:
    """GEMMs whose result nothing in the model reads except to hand it out."""
    for site in recording.sites:
        if site.kind is OpKind.GEMM and site.weights and _only_leaves(recording, site):
            yield site.index


def _only_leaves(recording: Recording, site: Site) -> bool:
    """Whether every path from a site leads out of the model through ops that only move values."""
    for index in site.outputs:
        value = recording.values[index]
        if not value.consumers and index not in recording.returned:
            return False
        for consumer in value.consumers:
            follower = recording.sites[consumer]
            moves = follower.kind is OpKind.MOVE or follower.op == "dequant_stub"
            if not moves or not _only_leaves(recording, follower):
                return False
    return True


def _back_to_gemm(op: str) -> Callable[[Recording], Iterator[int]]:
    """Sites from the input of ``op`` back to the first GEMM, that one included."""

    def find(recording: Recording) -> Iterator[int]:
        for site in recording.sites:
            if site.op == op and site.data:
                yield from _walk_back(recording, site.data[0].value)

    return find


def _walk_back(recording: Recording, value: int) -> Iterator[int]:
    while (producer := recording.producer(value)) is not None:
        yield producer.index
        if producer.kind is OpKind.GEMM or len(producer.data) != 1:
            return
        value = producer.data[0].value


def _grid_sample_grids(recording: Recording) -> Iterator[int]:
    for site in recording.sites:
        if site.op == "grid_sample":
            for value in sampled_at(site):
                yield from _walk_back(recording, value)


def _without_activation(spec: QConfigSpec) -> QConfigSpec:
    """What the op reads is still quantized as it would have been."""
    return replace(spec, activation=None, input=spec.input or spec.activation, name=f"{spec.name} 32-bit out")


def _int16(spec: QConfigSpec) -> QConfigSpec:
    narrow = spec.activation
    if narrow is None:
        return spec
    observer = "mse" if narrow.observer == "kl" else narrow.observer  # kl has too few bins for 16 bits
    known = accepted(observer, narrow.fake_quant).keys() - {"quant_min", "quant_max"}
    kwargs = {key: value for key, value in narrow.kwargs.items() if key in known} | {"dtype": "qint16"}
    activation = replace(narrow, observer=observer, qkwargs=tuple(sorted(kwargs.items())))
    return replace(spec, activation=activation, name=f"{spec.name} int16")


TEMPLATES: dict[str, tuple[Callable[[Recording], Iterator[int]], Change]] = {
    "high_precision_output": (_high_precision_outputs, _without_activation),
    "softmax_int16": (_back_to_gemm("softmax"), _int16),
    "layer_norm_int16": (_back_to_gemm("layer_norm"), _int16),
    "grid_sample_int16": (_grid_sample_grids, _int16),
}
