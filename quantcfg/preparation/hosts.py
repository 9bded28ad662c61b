"""Where the fake quantize modules live in the user's model, without being in its way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from quantcfg.errors import PrepareError
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.preparation.intercept import Interceptor

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
ATTRIBUTE = "fake_quants"


def is_quantizer_key(name: str) -> bool:
    """Whether the name of a module, parameter or buffer leads into the `FakeQuants` of a host."""
    return any(part.rstrip("_") == ATTRIBUTE for part in name.split("."))


class FakeQuants(nn.ModuleDict):
    """The fake quantize modules of one host module, by slot: ``weight``, ``output``, ``add_0``, ``input_0``.

    ``qat`` says that the switches follow the mode of the model: observing in training, not in evaluation.
    A quantizer that has seen nothing yet stays in float in evaluation, since trainers evaluate a batch or two
    before the first step; it quantizes once something is loaded.
    """

    def __init__(self, interceptor: Interceptor) -> None:
        super().__init__()
        self.interceptor = interceptor
        self.qat = False
        self.frozen = False
        self.register_load_state_dict_pre_hook(_keep_own)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_follow_mode)  # type: ignore[no-untyped-call]

    def forward(self, x: Any) -> Any:
        """``x``: some forwards call all that they find in ``_modules``, one after the other."""
        return x

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Yield names and modules; none to a forward that asks a module what it, or its parameters, are.

        Raises:
            PrepareError: the model is traced symbolically.
        """
        if self.interceptor.position.depth:
            return
        if is_fx_symbolic_tracing():
            raise PrepareError(
                "a prepared model cannot be traced symbolically: what it does between its layers would stay "
                "in float",
                hint="torch.export.export sees all that it does; or trace the float model",
            )
        yield from super().named_modules(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """What `nn.Module.state_dict` gives; to a forward that asks, nothing."""
        if not self.interceptor.position.depth:
            return super().state_dict(*args, **kwargs)
        return kwargs.get("destination", {})

    def __prepare_scriptable__(self) -> None:
        """What ``torch.jit.script`` asks each module of a model for, before it compiles anything.

        Raises:
            PrepareError: always.
        """
        raise PrepareError(
            "torch.jit.script cannot compile a prepared model: it would see the layers alone",
            hint="`quantcfg export` writes ONNX, and torch.export.export takes the model as it is; or script "
            "the float model",
        )

    @property
    def training(self) -> bool:
        """The mode of the host. Some trainers restore it by assignment, without a call of ``train``."""
        return bool(self.__dict__.get("_training", True))

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["_training"] = mode
        self.follow_mode()

    def quantizers(self) -> Iterable[FakeQuantizeBase]:
        """The fake quantize modules."""
        return cast("Iterable[FakeQuantizeBase]", self.values())

    def follow_mode(self) -> None:
        """Switch as the mode says, in QAT; in any other state the switches are not the mode's."""
        if not self.__dict__.get("qat", False):
            return
        mode = self.training
        for module in self.quantizers():
            module.observing = mode and not self.frozen
            module.quantizing = mode or module.has_default or module.has_qparams.is_meta or module.observed


def _follow_mode(container: FakeQuants, incompatible: object) -> None:  # noqa: ARG001  torch's signature
    container.follow_mode()


def _keep_own(container: FakeQuants, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A forward that copies the state of one part into another leaves the quantizers of both as they are."""
    if container.interceptor.position.depth:
        with torch._C.DisableTorchFunction():  # how it is put together is none of the forward's ops
            own = nn.Module.state_dict(container, prefix=prefix)
        state.update((key, tensor) for key, tensor in own.items() if key not in state)


def host_of(path: str, modules: Mapping[str, nn.Module]) -> tuple[str, str]:
    """The module that holds the quantizers of ops of the module at ``path``, and a prefix for their slots.

    A container that a forward may iterate over must not grow a child: its quantizers live one level up, or,
    at the root, in its first child that is no container.

    Raises:
        PrepareError: there is no module but containers.
    """
    prefix = ""
    while isinstance(modules[path], _CONTAINERS):
        if not path:
            return _first_plain(modules), f"root_{prefix}"
        path, _, name = path.rpartition(".")
        prefix = f"{name}_{prefix}"
    return path, prefix


def _first_plain(modules: Mapping[str, nn.Module]) -> str:
    for path, module in modules.items():
        if not isinstance(module, _CONTAINERS):
            return path
    raise PrepareError("the model holds no module besides containers: there is nothing to quantize")


class OwnChildren:
    """``named_children`` of a host: while a forward runs, a module sees only the children it came with."""

    def __init__(self, host: nn.Module, interceptor: Interceptor) -> None:
        self.host = host
        self.interceptor = interceptor

    def __call__(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield names and children; outside of a forward (``train``, ``to``, ``apply``) all of them."""
        for name, child in type(self.host).named_children(self.host):
            if not (self.interceptor.position.depth and isinstance(child, FakeQuants)):
                yield name, child


def container_of(host: nn.Module, interceptor: Interceptor) -> FakeQuants:
    """The `FakeQuants` of a host, made when there is none; a name that the user has taken is left alone."""
    attribute = ATTRIBUTE
    while _is_taken(host, attribute):
        attribute += "_"
    if attribute not in host._modules:
        host.__dict__["named_children"] = OwnChildren(host, interceptor)
        nn.Module.__setattr__(host, attribute, FakeQuants(interceptor).train(host.training))
    container = host._modules[attribute]
    assert isinstance(container, FakeQuants)
    return container


def _is_taken(host: nn.Module, name: str) -> bool:
    """Whether a name is the user's; asks no ``__getattr__``, which may answer for others, or always."""
    if name in host._modules:
        return not isinstance(host._modules[name], FakeQuants)
    own = (host.__dict__, host._parameters, host._buffers)
    return any(name in names for names in own) or hasattr(type(host), name)
