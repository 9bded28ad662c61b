"""Where the gradients end, to the last bit, eager and compiled, and what a compiler keeps for them."""

from __future__ import annotations

import math

import pytest
import torch

from quantcfg.numeric.ops import fake_quantize, lsq_fake_quantize

GRIDS = [(-128, 127), (-127, 126), (0, 255), (-3, 4), (-32768, 32767), (-8, 6)]
SCALE = 0.25  # a power of two: x / scale is exact, and so is what the tests expect
ZERO_POINTS = [None, 3]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own


def compiled(function):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager_decomp_partition")


MODES = {"eager": lambda function: function, "compiled": compiled}


def cases(mode):
    """The grids and dtypes to try; one is enough for the compiler, which takes its time for each."""
    grids = GRIDS if mode == "eager" else GRIDS[-1:]
    return [(grid, dtype) for grid in grids for dtype in (torch.float32, torch.float64)[: len(grids)]]


def places_around(grid, zero_point, dtype):
    """The ends of the grid, the half-way cases beside them, and the numbers next to those."""
    ends = torch.tensor(grid, dtype=dtype) - (zero_point or 0)
    half_way = torch.cat([ends - 0.5, ends + 0.5])
    far = torch.tensor([-math.inf, math.inf], dtype=dtype)
    return torch.cat([ends, half_way, half_way.nextafter(far[:1]), half_way.nextafter(far[1:]), far])


def expected_slopes(places, grid, zero_point):
    """The gradients of x and of the scale, by the rule: where the rounded place lies."""
    offset, slopes = zero_point or 0, []
    for place in places.tolist():
        integer = place if math.isinf(place) else round(place)  # Python rounds half to even
        inside = grid[0] <= integer + offset <= grid[1]
        end = grid[integer + offset > grid[1]] - offset
        slopes.append((float(inside), integer - place if inside else end))
    return torch.tensor(slopes, dtype=places.dtype).unbind(1)


@pytest.mark.parametrize("is_leaf", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_the_straight_gradient_ends_with_the_last_number_that_is_rounded_to_the_grid(
    zero_point, mode, is_leaf
):
    offset = None if zero_point is None else torch.tensor([zero_point])
    for grid, dtype in cases(mode):
        places = places_around(grid, zero_point, dtype)
        x = (places * SCALE).requires_grad_()

        def call(x, scale, grid=grid):
            x = x if is_leaf else x * 1
            return fake_quantize(x, scale, offset, quant_min=grid[0], quant_max=grid[1])

        MODES[mode](call)(x, torch.tensor([SCALE], dtype=dtype)).sum().backward()
        assert torch.equal(x.grad, expected_slopes(places, grid, zero_point)[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_the_step_learns_from_the_rounding_error_on_the_grid_and_from_its_ends_beyond(zero_point, mode):
    for grid, dtype in cases(mode):
        places = places_around(grid, zero_point, dtype)
        x = (places * SCALE).requires_grad_()
        steps = torch.full_like(places, SCALE).requires_grad_()  # one for each element
        offset = None if zero_point is None else torch.full_like(places, zero_point, dtype=torch.int32)

        def call(x, scale, grid=grid, offset=offset):
            bounds = {"quant_min": grid[0], "quant_max": grid[1]}
            return lsq_fake_quantize(x, scale, offset, **bounds, grad_scaling=False, ch_axis=0)

        MODES[mode](call)(x, steps).sum().backward()
        grad_x, grad_step = expected_slopes(places, grid, zero_point)
        assert torch.equal(x.grad, grad_x)
        assert torch.equal(steps.grad, grad_step)


@pytest.mark.parametrize("shape", [(4, 3, 5), (0, 3)])
def test_a_compiled_leaf_is_kept_itself_without_a_bool_of_each_element(shape):
    kept = []
    weight = torch.randn(shape, requires_grad=True)
    call = compiled(lambda x, scale: fake_quantize(x, scale, None, quant_min=-8, quant_max=7))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        call(weight, torch.tensor([0.1])).sum().backward()
    assert weight.grad.shape == shape
    assert {tensor.dtype for tensor in kept} == {torch.float32}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "expanded", "strided"])
@pytest.mark.parametrize("channels", [1, 6])
def test_rows_come_out_as_single_channels_do_in_any_layout(layout, channels):
    x = torch.randn(channels, 4, 5, 6)
    x = {
        "contiguous": lambda: x,
        "channels_last": lambda: x.to(memory_format=torch.channels_last),
        "transposed": lambda: x.transpose(1, 3),
        "expanded": lambda: x[:, :1].expand(-1, 4, -1, -1),
        "strided": lambda: x[..., ::2],
    }[layout]()
    scale = torch.rand(channels) + 0.1
    y = fake_quantize(x, scale.view(-1, 1, 1, 1), None, quant_min=-8, quant_max=7)
    for row, channel, step in zip(y, x, scale, strict=True):
        expected = (channel / step).round().clamp(-8, 7) * step + 0.0
        assert torch.equal(row.view(torch.int32), expected.view(torch.int32))
