"""From one stage to the next in the same model: other quantizers, the ranges that the old ones found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from quantcfg.config.load import Config
from quantcfg.config.rules import RuleSet
from quantcfg.config.suggest import listing
from quantcfg.errors import PrepareError, QuantcfgError
from quantcfg.preparation.assign import Assignments
from quantcfg.preparation.fold import is_folded
from quantcfg.preparation.hosts import FakeQuants
from quantcfg.preparation.intercept import interceptor_of
from quantcfg.preparation.late_parameters import held_by_optimizer, refuse_late_parameters
from quantcfg.preparation.prepare import build, decide, request_for
from quantcfg.preparation.state import (
    LoadReport,
    Prepared,
    containers_of,
    fake_quants,
    load_ranges,
    prepared,
    set_fake_quantize,
)


def change_stage(
    model: nn.Module,
    config: Config | RuleSet | Mapping[str, Any],
    *,
    stage: str = "qat",
    templates: Sequence[str] | None = None,
    strict: bool = True,
) -> LoadReport:
    """Give a prepared model the quantizers of another stage, which start from the ranges of those it has.

    The model, its weights and its batch norms stay what they are; nothing is recorded again. It is then in
    the state of the stage, CALIBRATION or QAT. Where this raises, the model is as it was.

    Args:
        model: a prepared model.
        config: the rules, as for `prepare`.
        stage: ``calib`` or ``qat``.
        templates: refinements by name; by default those of the config.
        strict: refuse when a new quantizer finds no range to start from.

    Raises:
        ConfigError: a rule matches nothing.
        NumericError: strict, and quantizers were not there before or never observed anything.
        PrepareError: the model is a part of a prepared one; a batch norm was not folded that would have to be
            now; or quantizers bring parameters of their own and an optimizer was made already.

    Example:
        >>> searched = {"": qc.get_default_qconfig(activation_observer="mse")}
        >>> model = qc.prepare(nn.Linear(4, 2), searched, example_inputs=torch.ones(8, 4))
        >>> with qc.calibrating(model):
        ...     _ = model(torch.linspace(-1, 1, 32).reshape(8, 4))
        >>> report = qc.change_stage(model, {"": qc.default_qat_8bit_fixed_act_fake_quant_qconfig})
        >>> report.loaded, qc.state_of(model)
        (('input.input', 'linear_0.weight', 'linear_0.output'), <FakeQuantState.QAT: 'qat'>)
    """
    known, interceptor = prepared(model), interceptor_of(model)
    assert interceptor is not None
    source = fake_quants(model)
    if len(source) < len(known.modules):
        raise PrepareError(
            f"this {type(model).__name__} is a part of a prepared model",
            hint="change the stage of the whole model",
        )
    request = request_for(config, stage, known.bn, templates)
    decided = decide(model, known.recording, known.targets, request)
    _refuse_to_fold(model, known, decided.assignments)
    parameters = {id(parameter) for parameter in model.parameters()}
    held = held_by_optimizer(parameters)
    before, runner, state = _take_out(model), interceptor.handler, known.state
    try:
        build(model, interceptor, known.recording, request, decided)
        if held:
            refuse_late_parameters(model, parameters, hint="change the stage before making the optimizer")
        return load_ranges(source, model, strict=strict)
    except QuantcfgError:
        _take_out(model)
        for host, (name, container) in before.items():
            host._modules[name] = container
        interceptor.handler, interceptor.prepared = runner, known
        set_fake_quantize(model, state)
        raise


def _refuse_to_fold(model: nn.Module, known: Prepared, assignments: Assignments) -> None:
    modules, sites = dict(model.named_modules()), known.recording.sites
    norms = [sites[chain.batch_norm] for chain in assignments.chains if chain.batch_norm is not None]
    left = [norm.name for norm in norms if not is_folded(modules[norm.path])]
    if known.bn == "fold" and left:
        raise PrepareError(
            f"{listing(left, 4)} would have to be folded, but the model may be in training already",
            hint="leave in float what was in float before, or prepare the float model for this stage and "
            "call load_observer_params",
        )


def _take_out(model: nn.Module) -> dict[nn.Module, tuple[str, FakeQuants]]:
    """Remove all quantizers; what is returned says where they were."""
    found = {}
    for host, container in containers_of(model).items():
        name = next(name for name, child in host._modules.items() if child is container)
        found[host] = (name, container)
        del host._modules[name]
    return found
