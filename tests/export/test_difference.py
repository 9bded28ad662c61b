"""How differences are summed and judged."""

import math

import pytest
import torch

from quantcfg.errors import RunError
from quantcfg.export.difference import Difference, bound, difference, holds


def test_a_difference_is_summed_over_all_tensors_of_a_structure():
    found = difference({"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([1.0, 4.0])})
    found += difference((torch.tensor([3.0]),), (torch.tensor([3.0]),))
    assert (found.max_abs, found.num_values, found.num_equal) == (2.0, 3, 2)
    assert found.rms == math.sqrt(4 / 3)
    assert found.signal_rms == math.sqrt((1 + 16 + 9) / 3)


def test_equal_infinities_and_nans_are_no_difference():
    x = torch.tensor([math.inf, -math.inf, math.nan, 1.0])
    found = difference(x, x.clone())
    assert (found.max_abs, found.equal_share, found.rms) == (0.0, 1.0, 0.0)


def test_a_lost_infinity_is_beyond_every_bound():
    found = difference(torch.tensor([0.0]), torch.tensor([math.inf]))
    assert not holds(found, bound(Difference(), 1.0))


def test_integers_are_counted_not_subtracted():
    found = difference(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4]))
    assert (found.num_changed, found.num_others, found.num_values) == (1, 3, 0)
    assert not holds(found, 1.0)


def test_other_shapes_are_refused():
    with pytest.raises(RunError, match="other shapes"):
        difference(torch.zeros(2), torch.zeros(3))


def test_the_bound_is_a_share_of_the_quantization_error_or_of_the_signal():
    noisy = difference(torch.tensor([0.0, 0.0]), torch.tensor([2.0, 2.0]))
    exact = difference(torch.tensor([2.0, 2.0]), torch.tensor([2.0, 2.0]))
    assert bound(noisy, 0.5) == 1.0
    assert bound(exact, 0.5) == 0.02
