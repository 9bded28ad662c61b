"""Convolutions, linear layers and matrix products in numpy int64, written out as loops; and the one rule."""

import itertools

import numpy as np


def requantize(terms, *, out_scale, zero_point, low, high):
    """``clamp(round_half_even(sum(steps * (scale / out_scale))) + zero_point, low, high)``."""
    total = sum(steps.astype(np.float64) * (scale / out_scale) for steps, scale in terms)
    return np.clip(np.rint(total).astype(np.int64) + zero_point, low, high)


def bias_steps(bias, scale):
    return np.rint(bias.astype(np.float64) / scale).astype(np.int64)


def conv(x, weight, *, stride, padding, dilation, groups):
    """x: (N, C, *axes) and weight: (O, C / groups, *axes), int64; a loop over every output position."""
    axes = x.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *[(padding, padding)] * axes])
    kernel = weight.shape[2:]
    sizes = [(x.shape[2 + i] - dilation * (kernel[i] - 1) - 1) // stride + 1 for i in range(axes)]
    out = np.zeros((x.shape[0], weight.shape[0], *sizes), dtype=np.int64)
    per_in, per_out = x.shape[1] // groups, weight.shape[0] // groups
    for sample, channel in itertools.product(range(x.shape[0]), range(weight.shape[0])):
        first = channel // per_out * per_in
        for place in itertools.product(*map(range, sizes)):
            window = tuple(slice(p * stride, p * stride + dilation * (k - 1) + 1, dilation)
                           for p, k in zip(place, kernel, strict=True))  # fmt: skip
            patch = x[(sample, slice(first, first + per_in), *window)]
            out[(sample, channel, *place)] = int((patch * weight[channel]).sum())
    return out


def conv_transpose(x, weight, *, stride, padding, groups):
    """weight: (C, O / groups, *axes); every input value is spread over the outputs it reaches."""
    axes, kernel = x.ndim - 2, weight.shape[2:]
    per_in, per_out = x.shape[1] // groups, weight.shape[1]
    sizes = [(x.shape[2 + i] - 1) * stride + kernel[i] for i in range(axes)]
    out = np.zeros((x.shape[0], per_out * groups, *sizes), dtype=np.int64)
    for sample, channel in itertools.product(range(x.shape[0]), range(x.shape[1])):
        first = channel // per_in * per_out
        for place in itertools.product(*map(range, x.shape[2:])):
            window = tuple(slice(p * stride, p * stride + k) for p, k in zip(place, kernel, strict=True))
            out[(sample, slice(first, first + per_out), *window)] += (
                x[(sample, channel, *place)] * weight[channel]
            )
    inner = tuple(slice(padding, size - padding) for size in sizes)
    return out[(slice(None), slice(None), *inner)]
