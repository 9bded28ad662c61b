"""The state of a prepared model, and moving what its fake quantize modules learned elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn

from quantcfg.config.rules import Target
from quantcfg.config.suggest import counted, listing
from quantcfg.errors import NumericError, PrepareError, warn
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.preparation.fold import normalizes
from quantcfg.preparation.hosts import FakeQuants, is_quantizer_key
from quantcfg.preparation.intercept import Interceptor, interceptors_of, scope_of
from quantcfg.preparation.plan import Plan
from quantcfg.preparation.record import Recording


class FakeQuantState(Enum):
    """What the fake quantize modules of a model do. The state is the model's own; nothing is global."""

    FLOAT = "float"  # nothing: the float model, bit for bit
    CALIBRATION = "calibration"  # observe; values stay float
    QAT = "qat"  # observe in training mode, and quantize
    VALIDATION = "validation"  # quantize with what there is


@dataclass(slots=True)
class Prepared:
    """What a prepared model knows of itself, beside the handler that runs it."""

    stage: str
    plan: Plan
    recording: Recording
    modules: dict[str, FakeQuantizeBase]
    targets: list[Target]  # the ops as the rules saw them, before batch norms were folded
    bn: str
    state: FakeQuantState = FakeQuantState.FLOAT


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What `load_observer_params` did, quantizer by quantizer."""

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # in the model, not in the source: left as they were
    unexpected: tuple[str, ...] = ()  # in the source, not in the model
    unobserved: tuple[str, ...] = ()  # in both, and never observed

    def __str__(self) -> str:
        """A table: one line for each quantizer, those that have nothing to start from first."""
        outcomes = {
            "left at its default: not in the source": self.missing,
            "left at its default: never observed in the source": self.unobserved,
            "not in this model": self.unexpected,
            "loaded": self.loaded,
        }
        width = max((len(name) for names in outcomes.values() for name in names), default=0)
        return "\n".join(
            f"{name:{width}}  {outcome}" for outcome, names in outcomes.items() for name in names
        )


def prepared(model: nn.Module) -> Prepared:
    """What `prepare` left on a model.

    Raises:
        PrepareError: the model is not a prepared one, or waits for its first forward.
    """
    found = _find(model)
    if found is None:
        raise PrepareError(
            f"this {type(model).__name__} is not a prepared model",
            hint="make one with quantcfg.prepare(model, config, example_inputs=...)",
        )
    if found.prepared is None:
        raise _not_yet(model)
    return found.prepared


def _not_yet(model: nn.Module) -> PrepareError:
    return PrepareError(
        f"this {type(model).__name__} has no quantizers before its first forward",
        hint="run one batch through it, or pass example_inputs to prepare_qat_fx",
    )


def refuse_early_state(model: nn.Module, state: Mapping[str, Any], *_: Any) -> None:
    """Before ``load_state_dict``: say what is missing where quantizers are loaded that are not there yet."""
    found = _find(model)
    if found is not None and found.pending is not None and any(map(is_quantizer_key, state)):
        raise _not_yet(model)


def _find(model: nn.Module) -> Interceptor | None:
    found = interceptors_of(model)
    if len(found) > 1:
        raise PrepareError(
            f"this {type(model).__name__} holds {len(found)} prepared models: "
            + ", ".join(f"'{path}'" for path in found),
            hint="call this for each of them: their quantizers may have the same names",
        )
    return next(iter(found.values()), None)


def plan_of(model: nn.Module) -> Plan:
    """The plan of a prepared model: one row per op, with the reason.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        >>> prepared = qc.prepare(model, {"": qc.get_default_qconfig()}, example_inputs=torch.ones(2, 4))
        >>> [(row.name, row.role, row.reason) for row in qc.plan_of(prepared).rows]
        [('0', 'fused', 'fused into 1'), ('1', 'quantized', '')]
    """
    return prepared(model).plan


def fake_quants(model: nn.Module) -> dict[str, FakeQuantizeBase]:
    """The fake quantize modules by name: ``conv1.weight``, ``layer1.0.add_0.output``, ``input.x``.

    Raises:
        PrepareError: the model holds several prepared ones.

    Example:
        >>> rules = {"": qc.get_default_qconfig(activation_qkwargs={"dtype": "qint16"})}
        >>> prepared = qc.prepare(nn.Linear(4, 2), rules, example_inputs=torch.ones(2, 4))
        >>> {name: module.dtype for name, module in qc.fake_quants(prepared).items()}
        {'input.input': qint16, 'linear_0.weight': qint8, 'linear_0.output': qint16}
    """
    _find(model)
    return {module.name: module for module in model.modules() if isinstance(module, FakeQuantizeBase)}


def set_fake_quantize(model: nn.Module, state: FakeQuantState) -> None:
    """Set the state of a prepared model; the order of this call and of ``train()`` or ``eval()`` is free.

    Raises:
        PrepareError: the model is not a prepared one, or ``state`` is no `FakeQuantState`.
        NumericError: VALIDATION with quantizers that never observed anything; the message lists them.

    Example:
        >>> rules = {"": qc.get_default_qconfig()}
        >>> prepared = qc.prepare(nn.Linear(4, 2), rules, example_inputs=torch.ones(2, 4), stage="qat")
        >>> qc.set_fake_quantize(prepared, qc.FakeQuantState.FLOAT)
        >>> qc.state_of(prepared)
        <FakeQuantState.FLOAT: 'float'>
    """
    interceptor = _find(model)
    if interceptor is None:
        prepared(model)
    assert interceptor is not None
    _refuse_other_than_state(state)
    if interceptor.prepared is None:
        interceptor.deferred_state = state
        return
    known = interceptor.prepared.modules  # of the whole model, where `model` may be a part
    containers = [module for module in model.modules() if isinstance(module, FakeQuants)]
    present = {module.name: module for container in containers for module in container.quantizers()}
    _tell_of_missing(model, known, present)
    if state is FakeQuantState.VALIDATION:
        _refuse_unobserved(present)
    for container in containers:
        container.qat = state is FakeQuantState.QAT
        for module in container.quantizers():
            module.observing = state is FakeQuantState.CALIBRATION
            module.observer.fold_batches = state is FakeQuantState.QAT
            module.quantizing = state is FakeQuantState.VALIDATION
        container.follow_mode()
    others = len(present) < len(known) and interceptor.active
    interceptor.active = bool(known) and (state is not FakeQuantState.FLOAT or others)
    interceptor.prepared.state = state


def _refuse_other_than_state(given: Any) -> None:
    if not isinstance(given, FakeQuantState):
        known = ", ".join(f"FakeQuantState.{state.name}" for state in FakeQuantState)
        raise PrepareError(f"a state must be one of {known} (got {given!r})")


def _tell_of_missing(model: nn.Module, known: dict[str, Any], present: Mapping[str, Any]) -> None:
    """Say it once of quantizers that went with the modules that held them, and forget them."""
    missing = [name for name in known if name not in present]
    if not missing or _is_a_part(model):
        return
    warn(
        f"{counted(len(missing), 'quantizer')} went with modules that were replaced or deleted after "
        f"preparation: {listing(missing, 4)}: what is there now stays in float; "
        "change the float model, then prepare it",
    )
    for name in missing:
        del known[name]


def _is_a_part(model: nn.Module) -> bool:
    """Whether a module lies within what was prepared, and does not hold the whole of it."""
    return all(scope.path for scope in filter(None, map(scope_of, model.modules())))


def state_of(model: nn.Module) -> FakeQuantState:
    """The state that a prepared model is in.

    Example:
        >>> rules = {"": qc.get_default_qconfig()}
        >>> qc.state_of(qc.prepare(nn.Linear(4, 2), rules, example_inputs=torch.ones(2, 4)))
        <FakeQuantState.CALIBRATION: 'calibration'>
    """
    return prepared(model).state


@contextmanager
def calibrating(model: nn.Module) -> Iterator[nn.Module]:
    """Calibrate inside the block: evaluation mode, no gradients, observers on, values float.

    Gradients stay on for a forward that takes some of its own, and did not run without when it was recorded.
    At its end every observer is solved, and mode and state are as before.

    Raises:
        NumericError: quantizers that never observed anything; the message lists all of them.

    Example:
        >>> rules = {"": qc.get_default_qconfig(activation_observer="percentile")}
        >>> prepared = qc.prepare(nn.Linear(4, 2), rules, example_inputs=torch.ones(2, 4))
        >>> with qc.calibrating(prepared):
        ...     for batch in torch.linspace(-1, 1, 64).reshape(4, 4, 4):
        ...         _ = prepared(batch)
        >>> qc.fake_quants(prepared)["input.input"].qparams().scale.shape
        torch.Size([1])
    """
    before = state_of(model)
    if prepared(model).stage == "qat":
        _warn_of_unseen_norms(model)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    try:
        with torch.set_grad_enabled(prepared(model).recording.differentiates):
            yield model
        finish_calibration(model)
    finally:
        model.train(modes[model])  # for who does more than change the mode, as adapters that are merged
        for module, mode in modes.items():
            module.training = mode
        set_fake_quantize(model, FakeQuantState.FLOAT)
        set_fake_quantize(model, before)


def _warn_of_unseen_norms(model: nn.Module) -> None:
    """Batch norms that training will change at once: ranges found with their first values are worthless."""
    norms = [name for name, module in model.named_modules() if _is_unseen_norm(module)]
    if norms:
        warn(
            f"{len(norms)} batch norms have not seen a batch yet, '{norms[0]}' for one: training will "
            "normalize with other statistics, and the ranges of this calibration will not fit; "
            "load trained weights, or train without calibrating",
        )


def _is_unseen_norm(module: nn.Module) -> bool:
    if not normalizes(module):
        return False
    mean, variance = module._buffers["running_mean"], module._buffers["running_var"]
    assert mean is not None and variance is not None
    return bool((variance == 1).all() and (mean == 0).all())


def finish_calibration(model: nn.Module) -> None:
    """Solve every observer and keep its qparams.

    Raises:
        NumericError: quantizers that never observed anything; the message lists all of them.

    Example:
        >>> rules = {"": qc.get_default_qconfig()}
        >>> prepared = qc.prepare(nn.Linear(4, 2), rules, example_inputs=torch.ones(2, 4)).eval()
        >>> _ = prepared(torch.ones(2, 4))  # in CALIBRATION, the state that it starts in
        >>> qc.finish_calibration(prepared)
        >>> qc.set_fake_quantize(prepared, qc.FakeQuantState.VALIDATION)
    """
    present = fake_quants(model)
    _refuse_unobserved(present)
    for module in present.values():
        module.finish_observation()


def _refuse_unobserved(present: Mapping[str, FakeQuantizeBase]) -> None:
    missing = [name for name, module in present.items() if not module.observed]
    if missing:
        raise NumericError(
            f"{len(missing)} of {len(present)} quantizers never observed a value: {listing(missing)}",
            hint="calibrate with batches that reach these ops, or leave them in float with a `null` rule",
        )


def check_observers(model: nn.Module) -> None:
    """Ask every observer whether it met NaN or inf in training, where asking at each step would be slow.

    Raises:
        NumericError: one did; the message names it.
    """
    for module in fake_quants(model).values():
        module.observer.check()


def containers_of(model: nn.Module) -> dict[nn.Module, FakeQuants]:
    """Where the quantizers of a model are, by the module that holds them."""
    return {
        host: child
        for host in model.modules()
        for child in host._modules.values()
        if isinstance(child, FakeQuants)
    }


def load_observer_params(from_model: nn.Module, to_model: nn.Module, *, strict: bool = True) -> LoadReport:
    """Start ``to_model`` from the ranges that ``from_model`` calibrated, whatever kinds the two use.

    Args:
        from_model: a calibrated prepared model.
        to_model: the prepared model to train, of the same architecture.
        strict: refuse when a quantizer of ``to_model`` finds nothing to load.

    Raises:
        NumericError: strict, and quantizers are missing in ``from_model`` or were never observed there; or
            one has another number of channels there.
        PrepareError: one of them is not a prepared model.

    Example:
        >>> searched = {"": qc.get_default_qconfig(activation_observer="mse")}
        >>> learned = {"": qc.get_default_qconfig("lsq", "lsq")}
        >>> model, batch = nn.Linear(4, 2), torch.linspace(-1, 1, 32).reshape(8, 4)
        >>> calibrated = qc.prepare(model, searched, example_inputs=batch)
        >>> with qc.calibrating(calibrated):
        ...     _ = calibrated(batch)
        >>> training = qc.prepare(model, learned, example_inputs=batch, stage="qat")
        >>> print(qc.load_observer_params(calibrated, training))
        input.input      loaded
        linear_0.weight  loaded
        linear_0.output  loaded
    """
    interceptor = _find(to_model)
    if interceptor is not None and interceptor.prepared is None and interceptor.pending is not None:
        interceptor.pending.finish_like(to_model, prepared(from_model).recording)
    for model in (from_model, to_model):
        prepared(model)
    return load_ranges(fake_quants(from_model), to_model, strict=strict)


def load_ranges(source: Mapping[str, FakeQuantizeBase], model: nn.Module, *, strict: bool) -> LoadReport:
    """Start the quantizers of ``model`` from those of the same names in ``source``.

    Raises:
        NumericError: strict, and some find nothing to load; or one has another number of channels.
    """
    target = fake_quants(model)
    report = LoadReport(
        loaded=tuple(name for name in target if name in source and source[name].observed),
        missing=tuple(name for name in target if name not in source),
        unexpected=tuple(name for name in source if name not in target),
        unobserved=tuple(name for name in target if name in source and not source[name].observed),
    )
    without = (*report.missing, *report.unobserved)
    if strict and without:
        raise NumericError(
            f"{len(without)} of {len(target)} quantizers have no calibrated range to start from: "
            f"{listing(without)}",
            hint="calibrate with the same rules, or pass strict=False to leave these to the first batches",
        )
    for name in report.loaded:
        _load_range(target[name], source[name])
    for container in containers_of(model).values():
        container.follow_mode()
    return report


def _load_range(target: FakeQuantizeBase, source: FakeQuantizeBase) -> None:
    channels = [module.observer.num_channels for module in (source, target)]
    if 1 not in channels and channels[0] != channels[1]:
        raise NumericError(
            f"'{target.name}' has {channels[1]} channels, and {channels[0]} where its range comes from",
            hint="load from a model of the same architecture",
        )
    target.load_qparams_from(source)
