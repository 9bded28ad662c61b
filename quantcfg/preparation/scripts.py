"""Functions in TorchScript, whose calls torch shows to nobody: what they return would come from nowhere."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch.overrides import handle_torch_function

_NAME = "__call__"
_CALL = torch.jit.ScriptFunction.__call__


class _Shown:
    """While in use, by one thread or by several, each call of such a function is one op named ``script``."""

    def __init__(self) -> None:
        self._users = 0
        self._one_at_a_time = threading.Lock()

    def __enter__(self) -> None:
        with self._one_at_a_time:
            self._users += 1
            setattr(torch.jit.ScriptFunction, _NAME, _call_shown)

    def __exit__(self, *raised: object) -> None:
        with self._one_at_a_time:
            self._users -= 1
            if not self._users:
                setattr(torch.jit.ScriptFunction, _NAME, _CALL)


scripts_shown = _Shown()


def _call_shown(function: Any, *args: Any, **kwargs: Any) -> Any:
    def script(*args: Any, **kwargs: Any) -> Any:
        if torch._C._len_torch_function_stack():
            return handle_torch_function(script, (), *args, **kwargs)
        return _CALL(function, *args, **kwargs)

    return script(*args, **kwargs)
