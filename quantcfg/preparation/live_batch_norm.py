"""Folding after training: the batch norms that ``bn: keep`` and ``freeze`` left in a model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from quantcfg.preparation.fold import fold_into_bias, leave_out
from quantcfg.preparation.intercept import interceptor_of
from quantcfg.preparation.record import Recording, Site
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
        live = action.batch_norm if action is not None else None
        norm = _site_of(live, known.recording, modules) if live is not None else None
        if norm is None:
            continue
        assert action is not None
        _fold(modules[gemm.path], action)
        _take_away(norm, modules, runner, action)
        reasons[norm.name] = f"folded into {gemm.name}"
    rows = tuple(replace(row, reason=reasons.get(row.name, row.reason)) for row in known.plan.rows)
    known.plan, known.bn = replace(known.plan, rows=rows), "fold"
    return [reason.removeprefix("folded into ") for reason in reasons.values()]


def _site_of(live: LiveBatchNorm, recording: Recording, modules: dict[str, nn.Module]) -> Site | None:
    return next((s for s in recording.sites if s.op == "batch_norm" and modules[s.path] is live.module), None)


def _fold(host: nn.Module, action: Action) -> None:
    live = action.batch_norm
    assert live is not None
    weight = host._parameters["weight"]
    assert weight is not None
    weight.data = live.folded(weight.detach())
    fold_into_bias(host, live.module)
    action.batch_norm = None


def _take_away(norm: Site, modules: dict[str, nn.Module], runner: Runner, action: Action) -> None:
    """Leave nothing of the batch norm; what quantized behind it quantizes behind ``action``."""
    behind = runner.action_at(norm)
    if behind is not None and behind.output is not None:
        action.output, behind.output = behind.output, None
    leave_out(modules[norm.path])
