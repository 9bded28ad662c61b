"""Convolution, linear, matmul, add and pooling against numpy in int64, integer by integer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantcfg.integer.convert import convert
from quantcfg.preparation.state import fake_quants
from tests.export.exported import calibrated, qconfig
from tests.integer import oracle

GRIDS = {
    "int8": qconfig("qint8", "qint8"),
    "uint8": qconfig("quint8", "qint8", affine=True),
    "int4": qconfig("qint4", "qint4"),
    "int16": qconfig("qint16", "qint8"),
}


def grid(quantizer):
    scale, zero_point = quantizer.qparams()
    return scale.double().numpy(), zero_point.numpy().astype(np.int64)


def integers(x, quantizer):
    """Integers less the zero point of a float tensor, by ONNX's formula, in numpy."""
    scale, zero_point = grid(quantizer)
    axis = quantizer.ch_axis
    shape = [-1 if i == axis else 1 for i in range(x.dim())] if axis >= 0 else [1]
    scale, zero_point = scale.astype(np.float32).reshape(shape), zero_point.reshape(shape)
    steps = np.rint(x.detach().numpy() / scale).astype(np.int64)
    return np.clip(steps + zero_point, quantizer.quant_min, quantizer.quant_max) - zero_point


def output_integers(y, quantizer):
    scale, zero_point = grid(quantizer)
    return np.rint(y.double().numpy() / scale).astype(np.int64) + zero_point


def expected(terms, quantizer):
    scale, zero_point = grid(quantizer)
    return oracle.requantize(
        terms, out_scale=scale, zero_point=zero_point, low=quantizer.quant_min, high=quantizer.quant_max
    )


CONVOLUTIONS = [
    pytest.param(1, {"stride": 2, "padding": 1, "dilation": 1, "groups": 1}, id="1d"),
    pytest.param(2, {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}, id="2d"),
    pytest.param(2, {"stride": 1, "padding": 2, "dilation": 2, "groups": 2}, id="dilated, grouped"),
    pytest.param(2, {"stride": 2, "padding": 0, "dilation": 1, "groups": 4}, id="depthwise"),
    pytest.param(3, {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}, id="3d"),
]


@pytest.mark.parametrize("spec", GRIDS)
@pytest.mark.parametrize(("axes", "how"), CONVOLUTIONS)
def test_a_convolution_is_the_int64_convolution(axes, how, spec):
    torch.manual_seed(axes)
    layer = getattr(nn, f"Conv{axes}d")(4, 8, 3, **how)
    x = torch.randn(2, 4, *[5] * axes)
    model = calibrated(nn.Sequential(layer), {"": GRIDS[spec]}, (x,))
    with torch.no_grad():
        y = convert(model)(x)
    of = fake_quants(model)
    weight, bias = integers(layer.weight, of["0.weight"]), layer.bias.detach().numpy()
    scale = (grid(of["input.input"])[0] * grid(of["0.weight"])[0]).reshape(-1, *[1] * axes)
    steps = oracle.conv(integers(x, of["input.input"]), weight, **how)
    steps = steps + oracle.bias_steps(bias.reshape(scale.shape), scale)
    assert np.array_equal(output_integers(y, of["0.output"]), expected([(steps, scale)], of["0.output"]))


@pytest.mark.parametrize("spec", GRIDS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_transposed_convolution_is_the_int64_one(axes, groups, spec):
    torch.manual_seed(axes)
    layer = getattr(nn, f"ConvTranspose{axes}d")(4, 6, 3, stride=2, padding=1, groups=groups)
    x = torch.randn(2, 4, *[3] * axes)
    model = calibrated(nn.Sequential(layer), {"": GRIDS[spec]}, (x,))
    with torch.no_grad():
        y = convert(model)(x)
    of = fake_quants(model)
    weight, bias = integers(layer.weight, of["0.weight"]), layer.bias.detach().numpy()
    scale = grid(of["input.input"])[0] * np.tile(grid(of["0.weight"])[0], groups)
    scale = scale.reshape(-1, *[1] * axes)
    steps = oracle.conv_transpose(
        integers(x, of["input.input"]), weight, stride=2, padding=1, groups=groups
    ) + oracle.bias_steps(bias.reshape(scale.shape), scale)
    assert np.array_equal(output_integers(y, of["0.output"]), expected([(steps, scale)], of["0.output"]))


@pytest.mark.parametrize("spec", GRIDS)
def test_a_linear_layer_is_the_int64_product(spec):
    torch.manual_seed(0)
    layer, x = nn.Linear(37, 11), torch.randn(5, 3, 37)
    model = calibrated(nn.Sequential(layer), {"": GRIDS[spec]}, (x,))
    with torch.no_grad():
        y = convert(model)(x)
    of = fake_quants(model)
    scale = grid(of["input.input"])[0] * grid(of["0.weight"])[0]
    steps = integers(x, of["input.input"]) @ integers(layer.weight, of["0.weight"]).T
    steps = steps + oracle.bias_steps(layer.bias.detach().numpy(), scale)
    assert np.array_equal(output_integers(y, of["0.output"]), expected([(steps, scale)], of["0.output"]))


class OfTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Bilinear(3, 4, 5)

    def forward(self, a, b):
        return self.layer(a, b)


@pytest.mark.parametrize("spec", GRIDS)
def test_a_bilinear_layer_is_the_int64_product_of_three(spec):
    torch.manual_seed(0)
    a, b = torch.randn(6, 3), torch.randn(6, 4)
    model = calibrated(OfTwo(), {"": GRIDS[spec]}, (a, b))
    with torch.no_grad():
        y = convert(model)(a, b)
    of, layer = fake_quants(model), model.layer
    scale = grid(of["input.a"])[0] * grid(of["input.b"])[0] * grid(of["layer.weight"])[0]
    left, right = integers(a, of["input.a"]), integers(b, of["input.b"])
    steps = np.einsum("ni,oij,nj->no", left, integers(layer.weight, of["layer.weight"]), right)
    steps = steps + oracle.bias_steps(layer.bias.detach().numpy(), scale)
    output = of["layer.output"]
    assert np.array_equal(output_integers(y, output), expected([(steps, scale)], output))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("spec", GRIDS)
def test_a_bag_of_embeddings_rounds_the_sum_of_its_rows_once(mode, spec):
    torch.manual_seed(0)
    bag, ids = nn.EmbeddingBag(9, 4, mode=mode), torch.randint(9, (6, 3))
    model = calibrated(nn.Sequential(bag), {"": GRIDS[spec]}, (ids,))
    with torch.no_grad():
        y = convert(model)(ids)
    of = fake_quants(model)
    rows, scale = integers(bag.weight, of["0.weight"]), grid(of["0.weight"])[0]
    share = 3 if mode == "mean" else 1
    terms = [(rows[column], scale[column][:, None] / share) for column in ids.numpy().T]
    assert np.array_equal(output_integers(y, of["0.output"]), expected(terms, of["0.output"]))


@pytest.mark.parametrize("spec", GRIDS)
@pytest.mark.parametrize("channels", [1, 6])
def test_a_prelu_is_a_table_for_each_channel(channels, spec):
    torch.manual_seed(0)
    layer, x = nn.PReLU(channels), torch.randn(5, 6, 3)
    nn.init.uniform_(layer.weight, -0.5, 0.5)
    model = calibrated(nn.Sequential(layer), {"": GRIDS[spec]}, (x,))
    with torch.no_grad():
        assert torch.equal(convert(model)(x), model(x))


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.nothing = nn.Identity()

    def forward(self, a, b):
        return torch.matmul(a, b)


@pytest.mark.parametrize("spec", GRIDS)
def test_a_matrix_product_is_the_int64_product(spec):
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 9), torch.randn(2, 9, 4)
    model = calibrated(Product(), {"": GRIDS[spec]}, (a, b))
    with torch.no_grad():
        y = convert(model)(a, b)
    of = fake_quants(model)
    scale = grid(of["input.a"])[0] * grid(of["input.b"])[0]
    steps = integers(a, of["input.a"]) @ integers(b, of["input.b"])
    out = of["matmul_0.output"]
    assert np.array_equal(output_integers(y, out), expected([(steps, scale)], out))


class ResidualReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv(x) + x)


@pytest.mark.parametrize("spec", GRIDS)
def test_a_fused_chain_rounds_once(spec):
    torch.manual_seed(0)
    net, x = ResidualReLU(), torch.randn(2, 3, 6, 6)
    model = calibrated(net, {"": GRIDS[spec]}, (x,))
    with torch.no_grad():
        y = convert(model)(x)
    of = fake_quants(model)
    source, out = of["input.x"], of["relu_0.output"]
    steps = integers(x, source)
    scale = (grid(source)[0] * grid(of["conv.weight"])[0]).reshape(-1, 1, 1)
    product = oracle.conv(
        steps, integers(net.conv.weight, of["conv.weight"]), stride=1, padding=1, dilation=1, groups=1
    ) + oracle.bias_steps(net.conv.bias.detach().numpy().reshape(-1, 1, 1), scale)
    wanted = np.maximum(expected([(product, scale), (steps, grid(source)[0])], out), int(grid(out)[1][0]))
    assert np.array_equal(output_integers(y, out), wanted)


POOLS = {
    "avg": nn.AvgPool2d(3, stride=2, padding=1),
    "avg, padding not counted": nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    "avg, ceil": nn.AvgPool2d(2, stride=2, ceil_mode=True),
    "avg, own divisor": nn.AvgPool2d(2, divisor_override=3),
    "adaptive": nn.AdaptiveAvgPool2d((3, 2)),
    "global": nn.AdaptiveAvgPool2d(1),
    "max": nn.MaxPool2d(3, stride=2, padding=1),
}


@pytest.mark.parametrize("kind", POOLS)
def test_pooling_is_an_exact_average_of_integers(kind):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 5)
    model = calibrated(nn.Sequential(nn.Conv2d(3, 4, 1), POOLS[kind]), {"": GRIDS["uint8"]}, (x,))
    of = fake_quants(model)
    source, converted = of["0.output"], convert(model)
    with torch.no_grad():
        steps = torch.from_numpy(output_integers(converted[0](x), source) - grid(source)[1]).double()
        y = converted(x)
    averages = POOLS[kind](steps).numpy()  # float64: exact to 1e-13 of a step
    if kind == "max":
        wanted = averages + grid(source)[1]
        assert np.array_equal(output_integers(y, source), wanted)
    else:
        wanted = expected([(averages.round(12), grid(source)[0])], of["1.output"])
        assert np.array_equal(output_integers(y, of["1.output"]), wanted)
