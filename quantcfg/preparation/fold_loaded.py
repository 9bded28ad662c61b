"""Loading a state from before the batch norms were folded: a checkpoint of the float model, say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from quantcfg.preparation.fold import FOLDED, affine, folded_bias, folded_weight

_STATE = (*FOLDED, "num_batches_tracked")


@dataclass(frozen=True, slots=True)
class FoldLoaded:
    """Before ``load_state_dict``: fold the batch norm that a state still holds into the weights beside it.

    A layer and its batch norm may be registered under several names; ``layers`` and ``norms`` hold them all,
    as seen from the module that this hangs on. ``axis`` is that of the output channels in the weight.
    """

    layers: tuple[str, ...]
    norms: tuple[str, ...]
    axis: int

    def __call__(self, above: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Change what is loaded below ``above``; a state without the batch norm is as it should be."""
        layer, norm = above.get_submodule(self.layers[0]), above.get_submodule(self.norms[0])
        held = _whole(norm, (_of(state, prefix, name) for name in self.norms))
        weights = [name for name in self.layers if _fits(layer, "weight", _of(state, prefix, name))]
        if held is None or not weights:
            return  # load_state_dict tells what is missing, or of another size
        factor, shift = affine(held)
        for name in weights:
            own, where = _of(state, prefix, name), _join(prefix, name)
            made = "folded_bias" if "folded_bias" in layer._parameters else "bias"
            state[f"{where}weight"] = folded_weight(layer, own["weight"], factor, axis=self.axis)
            state[f"{where}{made}"] = folded_bias(own.get("bias"), factor, shift, own["weight"].dtype)
        for name in self.norms:
            for key in _of(state, prefix, name):
                del state[f"{_join(prefix, name)}{key}"]


def fold_when_loaded(model: nn.Module, layers: Sequence[str], norms: Sequence[str], *, axis: int) -> None:
    """Let ``load_state_dict`` of ``model``, or of a part that holds both, take a state from before folding.

    ``layers`` and ``norms`` are all names of the layer and of its batch norm.
    """
    above = _common([*layers, *norms])
    inner = len(above) + 1 if above else 0
    hook = FoldLoaded(tuple(n[inner:] for n in layers), tuple(n[inner:] for n in norms), axis)
    model.get_submodule(above).register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]


def all_names(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every name of every module."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def _common(names: Iterable[str]) -> str:
    """The innermost module that all these lie in; a module lies in itself only if it is the model."""
    above = [name.split(".")[:-1] for name in names]
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*above, strict=False))
    return ".".join(parts[0] for parts in same)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}{name}." if name else prefix


def _of(state: dict[str, Any], prefix: str, name: str) -> dict[str, Tensor]:
    """What a state holds of one module, without what lies inside."""
    where = _join(prefix, name)
    return {key: state[f"{where}{key}"] for key in (*_STATE, "bias") if f"{where}{key}" in state}


def _whole(norm: nn.Module, states: Iterable[dict[str, Tensor]]) -> Any:
    """The batch norm of the first state that has all of it."""
    needed = [name for name in FOLDED if getattr(norm, name, None) is not None]
    for state in states:
        if all(_fits(norm, name, state) for name in needed):
            return SimpleNamespace(**{name: state.get(name) for name in FOLDED}, eps=norm.eps)
    return None


def _fits(module: nn.Module, name: str, state: dict[str, Tensor]) -> bool:
    return name in state and state[name].shape == getattr(module, name).shape
