"""Prepare: record, assign, apply; and the reference toolkit's door to the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quantcfg.config.load import Config
from quantcfg.config.rules import Decision, RuleSet, Target
from quantcfg.config.suggest import counted
from quantcfg.errors import Diagnostic, PrepareError
from quantcfg.preparation.apply import BN_MODES, apply
from quantcfg.preparation.assign import Assignments
from quantcfg.preparation.collector import uncollected
from quantcfg.preparation.copying import copy_of
from quantcfg.preparation.fold import fold_obstacles
from quantcfg.preparation.freezing import freeze_batch_norm
from quantcfg.preparation.frozen_batch_norm import call_batch_norm
from quantcfg.preparation.hardware import Adjustment, Assigner, ExportTarget, target_of
from quantcfg.preparation.intercept import Interceptor, install, interceptors_of, uninstall
from quantcfg.preparation.late_parameters import held_by_optimizer, refuse_late_parameters
from quantcfg.preparation.leftovers import held_by, is_traceless
from quantcfg.preparation.outcomes import check_outcomes
from quantcfg.preparation.owned_tensors import parameters_of
from quantcfg.preparation.plan import make_plan
from quantcfg.preparation.record import Recording
from quantcfg.preparation.recorder import Recorder, run_recorder
from quantcfg.preparation.rules import check, default_activation, rules_from_dict, with_floats
from quantcfg.preparation.setters import Setter, apply_setters, check_setter, warn_of_strangers
from quantcfg.preparation.state import (
    FakeQuantState,
    Prepared,
    refuse_early_state,
    set_fake_quantize,
)
from quantcfg.preparation.targets import targets_of, with_attributes
from quantcfg.preparation.templates import with_templates

Forward = Callable[[nn.Module], Any]
STATES = {"calib": FakeQuantState.CALIBRATION, "qat": FakeQuantState.QAT}


def prepare(
    model: nn.Module,
    config: Config | RuleSet | Mapping[str, Any],
    *,
    example_inputs: Any = None,
    example_kw_inputs: Mapping[str, Any] | None = None,
    forward: Forward | None = None,
    stage: str = "calib",
    bn: str = "fold",
    templates: Sequence[str] | None = None,
) -> nn.Module:
    """Return a copy of ``model`` that quantizes as ``config`` says; the original is not touched.

    The copy keeps its class, its forward, its methods and its float state dict. It runs once on the example
    inputs, in evaluation mode and without gradients; what ran is what is quantized. It starts in the state of
    its stage: CALIBRATION or QAT.

    Args:
        model: any module whose forward runs.
        config: a loaded config, a `RuleSet`, or a dict of the reference's form
            ``{"": qconfig, "module_type": [(nn.Conv2d, q)], "module_name": {"head": q2}}``.
        example_inputs: a tuple of positional arguments, a dict of keyword arguments, or one tensor.
        example_kw_inputs: keyword arguments beside these.
        forward: instead of ``example_inputs``, runs the model once: ``lambda model: model(batch)``.
        stage: ``calib`` or ``qat``; stage-aware presets and rules differ.
        bn: ``fold`` batch norms into what precedes them, ``keep`` their statistics live, or ``freeze`` them.
        templates: refinements such as ``high_precision_output``; by default those of the config.

    Raises:
        ConfigError: a rule matches nothing, or an expected count differs.
        PrepareError: the model cannot be copied, or is prepared already.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> prepared = qc.prepare(model, {"": qc.get_default_qconfig()}, example_inputs=torch.ones(2, 4))
        >>> list(qc.fake_quants(prepared))
        ['input.input', '0.weight', '1.output', '2.weight', '2.output']
    """
    request = request_for(config, stage, bn, templates)
    if forward is None:
        if example_inputs is None and example_kw_inputs is None:
            raise PrepareError(
                "prepare needs example_inputs, or a forward to run once",
                hint="pass one batch: prepare(model, config, example_inputs=(images,))",
            )
        forward = forward_of(example_inputs, example_kw_inputs)
    if not callable(forward):
        raise PrepareError(
            f"forward must be a function of the model (got {type(forward).__name__})",
            hint="pass forward=lambda model: model(batch), or the batch as example_inputs",
        )
    return _prepared(model, forward, request)


def prepare_qat_fx(
    model: nn.Module,
    qconfig_dict: Mapping[str, Any] | None = None,
    *,
    example_inputs: Any = None,
    example_kw_inputs: Mapping[str, Any] | None = None,
    bn: str = "fold",
    qconfig_setter: Setter | Sequence[Setter] = (),
    hybrid: bool = False,
    hybrid_dict: Mapping[str, Any] | None = None,
    optimize_graph: bool = False,
) -> nn.Module:
    """Prepare a copy of ``model`` with the reference toolkit's ``qconfig_dict``.

    The dict has ``""`` (global), ``"module_type"`` and ``"module_name"``, whose values are dicts or lists of
    pairs; None leaves in float; a ``module.qconfig`` attribute beats all of it. Without example inputs the
    first forward is the example: the quantizers appear then, and it is an error if an optimizer that holds
    this model's parameters was made before and quantizers bring parameters of their own.

    Args:
        model: any module whose forward runs.
        qconfig_dict: the rules.
        example_inputs: as for `prepare`.
        example_kw_inputs: keyword arguments beside these.
        bn: as for `prepare`.
        qconfig_setter: decide what the dict and the attributes leave open.
        hybrid: ops in float are allowed, as they are without it; ``hybrid_dict`` needs it.
        hybrid_dict: the types (``"module_type"``) and names (``"module_name"``) of modules that stay in
            float, whatever ``qconfig_dict`` says of them or of what they are in.
        optimize_graph: there is none that could share the grids of what is concatenated: False.

    Raises:
        ConfigError: a rule, or a name in ``hybrid_dict``, matches nothing.
        PrepareError: a dict has another form, a setter is none, ``optimize_graph`` is True, or the model
            cannot be copied.

    Example:
        >>> head = {"1": qc.default_calib_8bit_weight_32bit_out_fake_quant_qconfig}
        >>> rules = {"": qc.default_calib_8bit_fake_quant_qconfig, "module_name": head}
        >>> model = qc.prepare_qat_fx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)), rules)
        >>> model(torch.ones(1, 3, 8, 8)).shape  # the first forward is the example
        torch.Size([1, 2, 6, 6])
        >>> list(qc.fake_quants(model))
        ['input.input', '0.weight', '0.output', '1.weight']
    """
    setters = tuple(qconfig_setter) if isinstance(qconfig_setter, Sequence) else (qconfig_setter,)
    for setter in setters:
        check_setter(setter)
    _check_reference_options(hybrid=hybrid, hybrid_dict=hybrid_dict, optimize_graph=optimize_graph)
    request = request_for(qconfig_dict or {}, "qat", bn, None)
    rules = with_floats(request.rules, hybrid_dict or {}, model)
    request = replace(request, rules=rules, setters=setters)
    if example_inputs is not None or example_kw_inputs is not None:
        return _prepared(model, forward_of(example_inputs, example_kw_inputs), request)
    _refuse_unready(model)
    copied = copy_of(model)
    interceptor = _instrument(copied, bn)
    interceptor.pending = Pending(request, interceptor)
    copied.register_load_state_dict_pre_hook(refuse_early_state)  # type: ignore[no-untyped-call]
    interceptor.active = True
    return copied


def _check_reference_options(*, hybrid: bool, hybrid_dict: Any, optimize_graph: bool) -> None:
    if optimize_graph:
        raise PrepareError(
            "optimize_graph must be False (got True): what is concatenated keeps the grids that it has",
            hint="leave it out; export.target in a config says what a chip takes",
        )
    if hybrid_dict and not hybrid:
        raise PrepareError(
            "hybrid_dict has no effect without hybrid=True",
            hint="pass hybrid=True, or leave hybrid_dict out",
        )


def _prepared(model: nn.Module, forward: Forward, request: Request) -> nn.Module:
    _refuse_unready(model)
    example = copy_of(model)
    ran, held = parameters_of(example), held_by(example)
    recording = _record(example, forward, request.bn)
    uninstall(example)
    written = recording.overwritten or any(p.grad is not None for p in ran.values()) or _has_train(model)
    whole = not written and is_traceless(held, held_by(example))
    copied = example if whole else copy_of(model, _unchanged(model, ran, recording))
    for old, new in zip(model.modules(), copied.modules(), strict=True):
        new.training = old.training
    _finish(copied, _instrument(copied, request.bn), recording, request)
    return copied


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked of `prepare`, in one value."""

    rules: RuleSet
    stage: str
    bn: str
    templates: tuple[str, ...] = ()
    setters: tuple[Setter, ...] = ()
    target: ExportTarget | None = None


def request_for(config: Any, stage: str, bn: str, templates: Sequence[str] | None) -> Request:
    """What `prepare` is asked for, checked.

    Raises:
        PrepareError: an unknown stage or ``bn``, or a config or templates of another form.
    """
    if stage not in STATES:
        raise PrepareError(f"unknown stage '{stage}'; known: {', '.join(STATES)}")
    if bn not in BN_MODES:
        raise PrepareError(f"unknown bn '{bn}'; known: {', '.join(BN_MODES)}")
    if isinstance(templates, str):
        raise PrepareError(
            f"templates must be a list of names (got the text '{templates}')",
            hint=f"pass templates=['{templates}']",
        )
    if isinstance(config, Config):
        named = config.templates(stage) if templates is None else templates
        return Request(config.rules(stage), stage, bn, tuple(named), target=target_of(config))
    rules = config if isinstance(config, RuleSet) else rules_from_dict(config)
    return Request(rules, stage, bn, tuple(templates or ()))


@dataclass(slots=True)
class Pending:
    """A preparation that waits for the first forward."""

    request: Request
    interceptor: Interceptor

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record this forward, then build the quantizers."""
        self.interceptor.pending = None
        self._finish(model, _record(copy_of(model), lambda m: m(*args, **kwargs), self.request.bn))

    def finish_like(self, model: nn.Module, recording: Recording) -> None:
        """Build the quantizers from the recording of a model of the same architecture."""
        self.interceptor.pending = None
        self._finish(model, copy.deepcopy(recording))

    def _finish(self, model: nn.Module, recording: Recording) -> None:
        before = {id(parameter) for parameter in model.parameters()}
        held = held_by_optimizer(before)
        wanted = self.interceptor.deferred_state
        _finish(model, self.interceptor, recording, self.request)
        if held:
            hint = "pass example_inputs to prepare_qat_fx, or run one batch before making the optimizer"
            refuse_late_parameters(model, before, hint=hint)
        if wanted is not None:
            set_fake_quantize(model, wanted)


def forward_of(example_inputs: Any, example_kw_inputs: Mapping[str, Any] | None = None) -> Forward:
    """How example inputs are handed to a model: a tuple as arguments, a dict by name, anything else alone."""
    args, kwargs = _arguments(example_inputs), dict(example_kw_inputs or {})
    if isinstance(example_inputs, Mapping):
        args, kwargs = (), {**example_inputs, **kwargs}

    def forward(model: nn.Module) -> Any:
        try:
            return model(*args, **kwargs)
        except Exception as error:  # whatever the user's code raises goes on, with how it was called
            handed = _handed(example_inputs, example_kw_inputs)
            error.add_note(f"raised while the model ran once on the example inputs, {handed}")
            raise

    return forward


def _arguments(example_inputs: Any) -> tuple[Any, ...]:
    if example_inputs is None:
        return ()
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def _handed(example_inputs: Any, example_kw_inputs: Mapping[str, Any] | None) -> str:
    if example_kw_inputs:
        names = ", ".join(map(str, example_kw_inputs))
        return f"with {names} by name" + (
            "" if example_inputs is None else f" beside {_handed(example_inputs, None)}"
        )
    kind = type(example_inputs).__name__
    if isinstance(example_inputs, tuple):
        return f"a tuple: model(*example_inputs) with {counted(len(example_inputs), 'argument')}"
    if isinstance(example_inputs, Mapping):
        return f"a {kind}: model(**example_inputs) with {', '.join(map(str, example_inputs))}"
    return f"a {kind}: model(example_inputs); a tuple holds several arguments, a dict holds them by name"


def _refuse_unready(model: nn.Module) -> None:
    kind = type(model).__name__
    if interceptors_of(model):
        raise PrepareError(
            f"this {kind} is prepared already",
            hint="prepare the float model again, or change the state with set_fake_quantize",
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise PrepareError(
            f"this {kind} is compiled: its ops cannot be seen",
            hint="prepare the model that it was scripted or traced from",
        )
    if any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise PrepareError(
            f"this {kind} has parameters whose shapes are not known yet",
            hint="run one batch through it first, as for an optimizer",
        )


def _instrument(model: nn.Module, bn: str) -> Interceptor:
    if bn == "fold":
        call_batch_norm(model)
    interceptor = Interceptor()
    install(((path, module) for path, module in model.named_modules() if _is_plain(module)), interceptor)
    return interceptor


def _is_plain(module: nn.Module) -> bool:
    return not isinstance(module, torch.jit.ScriptModule)


def _record(model: nn.Module, forward: Forward, bn: str) -> Recording:
    """Record a model that nobody needs afterwards: what a forward leaves behind in it is not undone."""
    interceptor = _instrument(model, bn)
    recording = _recorded(model, interceptor, forward)
    recording.unfoldable = fold_obstacles(recording, dict(model.named_modules()))
    return recording


def _recorded(model: nn.Module, interceptor: Interceptor, forward: Forward) -> Recording:
    """Record without gradients; with them where the forward takes gradients of its own and fails without."""
    recorder = Recorder(model)
    try:
        with torch.no_grad():
            return _run(recorder, model, interceptor, forward)
    except RuntimeError:
        if not recorder.recording.differentiates:
            raise
    with torch.enable_grad():
        recording = _run(Recorder(model), model, interceptor, forward)
    recording.differentiates = True
    return recording


def _run(recorder: Recorder, model: nn.Module, interceptor: Interceptor, forward: Forward) -> Recording:
    interceptor.handler, interceptor.active = recorder, True
    with torch.random.fork_rng(devices=_devices(model)):
        return run_recorder(recorder, lambda: forward(model.eval()))


def _has_train(model: nn.Module) -> bool:
    return any(type(module).train is not nn.Module.train for module in model.modules())


def _unchanged(
    model: nn.Module, ran: Mapping[str, nn.Parameter], recording: Recording
) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """The parameters of ``model`` with those of the copy that ``ran`` which another copy can have from it."""
    if _has_train(model):
        return  # it may write into any of them, as adapters do that are merged in evaluation
    overwritten = {id(ran[name]) for name in recording.overwritten if name in ran}
    for name, parameter in parameters_of(model).items():
        if id(ran[name]) not in overwritten and ran[name].grad is None:
            yield parameter, ran[name]


def _devices(model: nn.Module) -> list[torch.device]:
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return sorted({tensor.device for tensor in tensors if tensor.device.type == "cuda"}, key=str)


@uncollected()
def _finish(model: nn.Module, interceptor: Interceptor, recording: Recording, request: Request) -> None:
    targets = targets_of(model, recording)
    build(model, interceptor, recording, request, decide(model, recording, targets, request))


@dataclass(frozen=True, slots=True)
class Decided:
    """What the rules make of the ops of a recording."""

    targets: list[Target]
    assignments: Assignments
    adjustments: tuple[Adjustment, ...]
    findings: tuple[Diagnostic, ...]


def decide(model: nn.Module, recording: Recording, targets: list[Target], request: Request) -> Decided:
    """Resolve the rules, refine and check what they give, and assign a role to every op.

    Raises:
        ConfigError: a rule matches nothing, or an expected count differs.
    """
    rules = with_attributes(request.rules, model)
    assigner = Assigner(recording, default_activation(rules), rules, request.target)
    decisions = rules.resolve(targets)
    findings = check(rules, model, targets, decisions)
    warn_of_strangers(request.setters, recording, targets)

    def refined(decisions: Sequence[Decision]) -> list[Decision]:
        chosen = apply_setters(request.setters, recording, targets, list(decisions))
        return with_templates(request.templates, recording, chosen)

    def assigned(decisions: Sequence[Decision]) -> Assignments:
        return assigner.assign(assigner.fit(refined(decisions))[0])

    fitting, adjustments = assigner.fit(refined(decisions))
    assignments = assigner.assign(fitting)
    told = {finding.place for finding in findings}
    idle = check_outcomes(rules, recording, decisions, assignments, assign=assigned, told=told)
    return Decided(targets, assignments, adjustments, (*findings, *idle))


def build(
    model: nn.Module, interceptor: Interceptor, recording: Recording, request: Request, decided: Decided
) -> None:
    """Hang the quantizers into the model, and set the state of the stage."""
    applied = apply(model, recording, decided.assignments, bn=request.bn)
    plan = make_plan(
        model,
        recording,
        decided.assignments,
        stage=request.stage,
        folded=applied.folded,
        findings=decided.findings,
        adjustments=decided.adjustments,
    )
    if request.bn == "freeze":
        freeze_batch_norm(model)
    interceptor.handler = applied.runner
    interceptor.prepared = Prepared(
        request.stage, plan, recording, applied.modules, decided.targets, request.bn
    )
    set_fake_quantize(model, STATES[request.stage])
