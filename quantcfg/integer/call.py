"""One op as an integer kernel sees it: its arguments, and the integers that stand behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quantcfg.integer.values import Sum, Term, integers_of
from quantcfg.numeric.fake_quantize_base import FakeQuantizeBase
from quantcfg.preparation.record import Site

Key = int | str


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a torch function, with real tensors whose integers are noted on them.

    ``output`` is the quantizer of what the op makes; None inside a chain and where 32 bits go out.
    """

    site: Site
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: FakeQuantizeBase | None = None

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at ``position`` or called ``name``."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def sum_at(self, position: int, name: str) -> Sum | None:
        """The integers of that argument."""
        return integers_of(self.get(position, name))

    def term_at(self, position: int, name: str) -> Term | None:
        """The integers of that argument, where they are those of one grid."""
        found = self.sum_at(position, name)
        return None if found is None else found.with_bias_in_steps().only

    def run(self, *changes: tuple[int, str, Any]) -> Any:
        """What the function makes of other arguments: ``(position, name, value)`` each."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for position, name, value in changes:
            if position < len(args):
                args[position] = value
            elif name in kwargs:
                kwargs[name] = value
        return self.func(*args, **kwargs)

    def tensors(self) -> list[tuple[Key, Tensor]]:
        """The arguments that are tensors, by position or name; those in lists are not here."""
        pairs: list[tuple[Key, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        return [(key, x) for key, x in pairs if isinstance(x, Tensor)]

    def replaced(self, values: dict[Key, Any]) -> Any:
        """What the function makes with these arguments in the place of its own."""
        args = [values.get(index, x) for index, x in enumerate(self.args)]
        return self.func(*args, **{name: values.get(name, x) for name, x in self.kwargs.items()})
