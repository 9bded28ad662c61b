"""Whether a forward left anything behind in the model that it ran on."""

from __future__ import annotations

from typing import Any

from torch import nn

from quantcfg.preparation.tensors import OF_EVERY_MODULE, is_plain

_REGISTERED = ("_parameters", "_buffers", "_modules")

Held = list[dict[Any, Any]]


def held_by(model: nn.Module) -> Held:
    """What each module holds, by name; what it has registered, by kind and name."""
    return [{**vars(module), **_registered(module)} for module in model.modules()]


def _registered(module: nn.Module) -> dict[tuple[str, str], Any]:
    return {(kind, name): value for kind in _REGISTERED for name, value in getattr(module, kind).items()}


def is_traceless(before: Held, after: Held) -> bool:
    """Whether modules hold what they did, and nothing that a forward can change in place, but tensors.

    A list, an object, a hook or a function might have been changed, or have changed something, unseen.
    """
    return len(before) == len(after) and all(
        old.keys() == new.keys() and all(_is_kept(name, value, new[name]) for name, value in old.items())
        for old, new in zip(before, after, strict=True)
    )


def _is_kept(name: Any, old: Any, new: Any) -> bool:
    if name == "training":
        return True
    if name in _REGISTERED or name == "_non_persistent_buffers_set":
        return True  # its items are compared one by one
    if name in OF_EVERY_MODULE:
        return not new
    return old is new and (isinstance(name, tuple) or is_plain(old))
