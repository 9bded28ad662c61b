"""Every path of fake quantize against exact rationals, over random cases of every grid and precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from quantcfg.numeric import ops
from quantcfg.numeric.dtypes import DTYPES
from quantcfg.numeric.qparams import EPS, QParams, fake_quantize, quantize
from tests.numeric import oracles

PRECISIONS = {torch.float32: 0.6, torch.float16: 0.2, torch.bfloat16: 0.2}
SPECIAL = (0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 3e38, -3e38, math.inf, -math.inf, math.nan)


def random_qparams(random, grid):
    """A scale over all that a scale may be, a power of two in every other case; an odd zero point in half."""
    scale = 2.0 ** random.uniform(-23, 40)
    if random.random() < 0.5:
        scale = 2.0 ** round(math.log2(scale))
    zero_point = int(random.integers(grid.quant_min, grid.quant_max + 1))
    return max(float(np.float32(scale)), EPS), zero_point


def random_values(random, grid, qparams, count, dtype):
    """Ties, their neighbours in that precision, values anywhere; subnormals and the like."""
    scale, zero_point = qparams
    reach = grid.quant_min - 4, grid.quant_max + 5
    halves = random.integers(2 * reach[0], 2 * reach[1], count) / 2
    steps = np.where(random.random(count) < 0.66, halves, random.uniform(*reach, count)) - zero_point
    x = torch.tensor(steps * scale).float().to(dtype)
    bits = x.view(torch.int32 if dtype == torch.float32 else torch.int16)
    bits[::3] += torch.tensor(random.choice([-1, 1], len(bits[::3]))).to(bits.dtype)
    x[: len(SPECIAL)] = torch.tensor(SPECIAL).to(dtype)
    return x


def as_bits(values):
    return values.detach().float().contiguous().view(torch.int32)


def check(x, grid, scale, zero_point):
    bounds = {"quant_min": grid.quant_min, "quant_max": grid.quant_max}
    values, real = x.float().tolist(), ~x.isnan()
    exact = np.array([oracles.fake_quantize(v, scale, zero_point, **bounds) for v in values])
    expected = as_bits(oracles.cast_once(exact, x.dtype))
    qparams = QParams(torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32))
    for result in results(x, qparams, bounds):
        assert result.dtype == x.dtype
        assert torch.equal(as_bits(result)[real], expected[real]), (grid, scale, zero_point, x.dtype)
        assert result[~real].isnan().all()
    integers = [oracles.quantize(v, scale, zero_point, **bounds) for v in values if not math.isnan(v)]
    assert quantize(x[real], qparams, **bounds).tolist() == integers


def results(x, qparams, bounds):
    """What the reference gives, and what calibration, training and learning run."""
    yield fake_quantize(x, qparams, **bounds)
    yield ops.fake_quantize(x, *qparams, **bounds)
    yield ops.fake_quantize(x.clone().requires_grad_(), *qparams, **bounds)
    yield ops.fake_quantize(x.clone().requires_grad_().view_as(x), *qparams, **bounds)
    yield ops.lsq_fake_quantize(x.clone().requires_grad_(), *qparams, grad_scaling=True, **bounds)
    if not qparams.zero_point.any():
        yield ops.fake_quantize(x.clone().requires_grad_(), qparams.scale, None, **bounds)


def check_gradient(x, grid, scale, zero_point):
    """One where the integer, exact and before clamping, lies on the grid, else 0."""
    bounds = {"quant_min": grid.quant_min, "quant_max": grid.quant_max}
    wide = {"quant_min": grid.quant_min - 1, "quant_max": grid.quant_max + 1}
    qparams = torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32)
    x = x[~x.isnan()]
    integers = np.array([oracles.quantize(v, scale, zero_point, **wide) for v in x.float().tolist()])
    inside = (integers >= grid.quant_min) & (integers <= grid.quant_max)
    for used in (lambda x: x, lambda x: x.view_as(x)):  # a leaf keeps itself for backward, others flags
        leaf = x.clone().requires_grad_()
        ops.fake_quantize(used(leaf), *qparams, **bounds).sum().backward()
        assert np.array_equal(leaf.grad.float().numpy(), inside.astype(np.float32))


def random_cases(count, seed, *, per_case=500):
    """Compares about ``count`` random values; returns how many there were."""
    random, compared = np.random.default_rng(seed), 0
    grids = list(DTYPES.values())
    while compared < count:
        grid = grids[compared // per_case % len(grids)]
        scale, zero_point = random_qparams(random, grid)
        if random.random() < 0.3 and grid.signed:
            zero_point = 0
        dtype = random.choice(list(PRECISIONS), p=list(PRECISIONS.values()))
        x = random_values(random, grid, (scale, zero_point), per_case, dtype)
        check(x, grid, scale, zero_point)
        check_gradient(x, grid, scale, zero_point)
        compared += per_case
    return compared


def test_thirty_thousand_random_values_equal_the_rationals():
    assert random_cases(30_000, seed=0) >= 2 * len(DTYPES) * 500


@pytest.mark.slow
def test_a_million_random_values_equal_the_rationals():
    assert random_cases(1_000_000, seed=1) >= 1_000_000


def test_the_random_cases_hold_what_they_should():
    random, grid = np.random.default_rng(3), DTYPES["quint16"]
    x = random_values(random, grid, (2.0**-7, 32767), 4000, torch.float32).double()
    position = x[x.abs() < 1e6] * 2.0**7
    assert ((position * 2) % 2 == 1).sum() > 500
    assert (position.abs() > 30_000).sum() > 300
    assert (x[x != 0].abs() < 2.0**-126).sum() == 4
    assert {oracles.quantize(v, 2.0**-7, 32767, 0, 65535) % 2 for v in position.tolist()} == {0, 1}
