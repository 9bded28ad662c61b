"""Numbers beyond all that a grid can hold: float, and no attention mask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import plan_of
from quantcfg.qconfig import get_default_qconfig


class Grown(nn.Module):
    """A layer reads numbers that are multiplied until they are above 1e30, or that ``function`` makes."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 4), nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x) + 10))


def _squared(y: Tensor) -> Tensor:
    for _ in range(5):
        y = y * y
    return y


@pytest.mark.parametrize(
    ("function", "op", "is_mask"),
    [
        (_squared, "mul_4", False),
        (lambda y: y**40 + y, "add_1", False),
        (lambda y: (y * 10).exp(), "exp_0", False),
        (lambda y: (y * 50).exp2(), "exp2_0", False),
        (lambda y: (y * 10).expm1(), "expm1_0", False),
        (lambda y: (y * 1e8).prod(1, keepdim=True) + y, "add_1", False),
        (lambda y: (y * 1e8).cumprod(1), "cumprod_0", False),
        (lambda y: torch.square(y * 1e16) + y, "add_1", False),
        (lambda y: (y * 1e16) @ (y * 1e16).t() @ y, "matmul_0", False),
        (lambda y: _squared(y) @ _squared(y).t() @ y, "matmul_0", False),
        (lambda y: _squared(y) + 1, "add_1", False),
        (lambda y: _squared(y).masked_fill(y > 0, -torch.inf), "masked_fill_0", True),
        (lambda y: y.masked_fill(y > 0, -torch.inf) * _squared(y), "mul_5", True),
        (lambda y: torch.where(y > 0, _squared(y), -torch.inf), "where_0", True),
        (lambda y: _squared(y).index_fill(1, torch.tensor([0]), -torch.inf), "index_fill_0", True),
        (lambda y: y + (y > 10).float().log(), "add_1", True),
        (lambda y: y.masked_fill(y > 0, -1e31), "masked_fill_0", True),
    ],
)
def test_numbers_that_grow_beyond_all_grids_are_said_to_be_no_mask(
    function: Callable[[Tensor], Tensor], op: str, *, is_mask: bool
) -> None:
    torch.manual_seed(0)
    prepared = prepare(Grown(function), {"": get_default_qconfig()}, example_inputs=torch.randn(2, 4))
    row = next(row for row in plan_of(prepared).rows if row.name == op)

    expected = "carries an attention mask" if is_mask else "grows beyond 1e30"
    assert (row.role, row.reason[: len(expected)]) == ("float", expected)
