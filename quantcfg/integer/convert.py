"""From a calibrated or trained model to one that computes in integers."""

from __future__ import annotations

import copy

from torch import nn

from quantcfg.errors import PrepareError
from quantcfg.integer.runner import IntegerRunner, Step, Table
from quantcfg.preparation.intercept import interceptor_of
from quantcfg.preparation.live_batch_norm import fold_live_batch_norms
from quantcfg.preparation.ops import OpKind
from quantcfg.preparation.places import Places
from quantcfg.preparation.record import Recording
from quantcfg.preparation.run import Action, Runner
from quantcfg.preparation.state import FakeQuantState, prepared, set_fake_quantize

BIASES = ("int32", "exact")


def convert(model: nn.Module, *, bias: str = "int32") -> nn.Module:
    """Return a copy of a prepared model that computes in integers, as a chip would; ``model`` is not changed.

    The copy keeps its forward and takes and returns what the model does. Convolutions, linear layers and
    matrix products sum integer products in a wide accumulator, whose bias is rounded to its steps; adds,
    pooling, softmax and norms work on integer sums; functions of one value are tables over all integers of
    their input. What the plan leaves in float stays in float. Batch norms that training kept are folded.
    Every result gets onto its grid by one rule, `quantcfg.integer.values.requantize`. Between ops a tensor
    shows the real numbers that its integers stand for, and carries the integers themselves.

    It warns, at the first forward, where an int32 accumulator could overflow for the calibrated ranges.

    Args:
        model: prepared, with all its qparams.
        bias: ``int32`` rounds the bias of an accumulator to its steps, as chips and ONNX Runtime do;
            ``exact`` adds it unrounded, which is what the fake-quant model computes.

    Raises:
        PrepareError: ``model`` is not a prepared one, or is converted already; or no such ``bias``.
        NumericError: quantizers never observed anything.
    """
    if bias not in BIASES:
        raise PrepareError(f"unknown bias '{bias}'; known: {', '.join(BIASES)}")
    copied = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    fold_live_batch_norms(copied)
    interceptor = interceptor_of(copied)
    tables = step_tables(copied)
    assert interceptor is not None
    set_fake_quantize(copied, FakeQuantState.VALIDATION)
    interceptor.handler, interceptor.active = IntegerRunner(tables, exact_bias=bias == "exact"), True
    return copied


def step_tables(model: nn.Module) -> dict[str, list[Table]]:
    """The steps of every recorded site that the plan does not leave to float, by module and call.

    Raises:
        PrepareError: ``model`` is not a prepared one, or is converted already.
    """
    known, interceptor = prepared(model), interceptor_of(model)
    assert interceptor is not None
    runner = interceptor.handler
    if not isinstance(runner, Runner):
        raise PrepareError(f"this {type(model).__name__} computes in integers already")
    tables = _empty_tables(known.recording)
    for site, row in zip(known.recording.sites, known.plan.rows, strict=True):
        steps = tables[site.path][site.call].steps.setdefault(site.counted, [])
        steps.extend([None] * (site.ordinal + 1 - len(steps)))
        if site.kind is not OpKind.CREATE:
            steps[site.ordinal] = Step(site, row.role, runner.action_at(site) or Action())
    return tables


def _empty_tables(recording: Recording) -> dict[str, list[Table]]:
    """A table for each call; an op that ran more often than it made floats is counted to its end."""
    tables: dict[str, list[Table]] = {}
    for (path, call), counts in recording.counts.items():
        rows = tables.setdefault(path, [])
        rows.extend(Table(Places()) for _ in range(call + 1 - len(rows)))
        rows[call] = Table(recording.places[path, call], {op: [None] * n for op, n in counts.items()})
    return tables
