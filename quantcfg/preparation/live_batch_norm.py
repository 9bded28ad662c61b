"""Folding after training: the batch norms that ``bn: keep`` and ``freeze`` left in a model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from quantcfg.preparation.fold import fold_into_bias, is_folded, leave_out
from quantcfg.preparation.intercept import interceptor_of
from quantcfg.preparation.run import Action, LiveBatchNorm, Runner
from quantcfg.preparation.state import prepared


@torch.no_grad()
def fold_live_batch_norms(model: nn.Module) -> list[str]:
    """Change a prepared model so that no batch norm is left that ``bn: fold`` would not have left.

    Each weight becomes what its quantizer saw in training, so that its integers are the same; the running
    statistics go into the bias. The quantizer behind a batch norm moves to the layer before it. The model
    computes what it did in evaluation, to the rounding of floats.

    Returns:
        The layers that were folded into.

    Raises:
        PrepareError: ``model`` is not a prepared one.
    """
    known, interceptor = prepared(model), interceptor_of(model)
    assert interceptor is not None
    runner = interceptor.handler
    if not isinstance(runner, Runner):
        return []
    modules, reasons = dict(model.named_modules()), {}
    for gemm in known.recording.sites:
        action = runner.action_at(gemm)
        norm = known.recording.sole_consumer(gemm.outputs[0]) if gemm.outputs else None
        if action is None or action.batch_norm is None or norm is None:
            continue
        if not is_folded(modules[norm.path]):  # else it was with an earlier call
            _fold(modules[gemm.path], action.batch_norm)
            leave_out(modules[norm.path])
        action.batch_norm = None
        _hand_over_output(runner.action_at(norm), action)
        reasons[norm.name] = f"folded into {gemm.name}"
    rows = tuple(replace(row, reason=reasons.get(row.name, row.reason)) for row in known.plan.rows)
    known.plan, known.bn = replace(known.plan, rows=rows), "fold"
    return [reason.removeprefix("folded into ") for reason in reasons.values()]


def _fold(host: nn.Module, live: LiveBatchNorm) -> None:
    weight = host._parameters["weight"]
    assert weight is not None
    weight.data = live.folded(weight.detach())
    fold_into_bias(host, live.module)


def _hand_over_output(behind: Action | None, action: Action) -> None:
    """What quantized behind the batch norm quantizes behind ``action``."""
    if behind is not None and behind.output is not None:
        action.output, behind.output = behind.output, None
