"""What a model becomes on its way into a file: batch norms folded as training saw them, bfloat16 widened."""

import copy

import pytest
import torch
from torch import nn

import quantcfg as qc
from quantcfg.export.deployed import deployed
from quantcfg.numeric.qparams import QParams, quantize
from tests.export.exported import exported_as_prepared


class Net(nn.Module):
    """A batch norm behind each kind of layer: before a ReLU, before an add, at the end of a chain."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.norm_2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.point, self.norm_3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.up, self.norm_4 = nn.ConvTranspose2d(8, 4, 2, 2), nn.BatchNorm2d(4)
        self.fc, self.norm_5 = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        y = self.norm_2(self.depthwise(x))
        y = torch.relu(self.norm_3(self.point(y)) + x)
        return self.norm_5(self.fc(torch.relu(self.norm_4(self.up(y))).mean((2, 3))))


PAIRS = {"conv": "norm", "depthwise": "norm_2", "point": "norm_3", "up": "norm_4", "fc": "norm_5"}


def trained(bn, *, dtype=torch.float32):
    torch.manual_seed(0)
    model = Net()
    for name in PAIRS.values():
        norm = model.get_submodule(name)
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias)
        with torch.no_grad():
            norm.weight[1] = 0.0
    model = qc.prepare(model.to(dtype), {"": qc.get_default_qconfig()}, stage="qat", bn=bn,
                       example_inputs=torch.randn(8, 3, 6, 6, dtype=dtype)).train()  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 3, 6, 6, dtype=dtype)).square().mean().backward()
        optimizer.step()
    qc.set_fake_quantize(model, qc.FakeQuantState.VALIDATION)
    return model.eval()


@pytest.fixture(scope="module", params=["keep", "freeze"])
def live(request):
    return trained(request.param)


@pytest.fixture(scope="module")
def made(live):
    return exported_as_prepared(live, (torch.randn(4, 3, 6, 6),))


def seen_by_weight_quantizers(model, x):
    """What each quantizer of a weight is given in a forward."""
    seen = {}
    for name, module in qc.fake_quants(model).items():
        if name.endswith(".weight"):
            module.register_forward_pre_hook(lambda module, args: seen.setdefault(module.name, args[0]))
    with torch.no_grad():
        model(x)
    return seen


def test_the_integers_in_the_file_are_those_of_the_folded_weights_that_training_saw(live, made):
    constants = made.constants()
    seen = seen_by_weight_quantizers(copy.deepcopy(live), torch.randn(4, 3, 6, 6))
    for name, norm in PAIRS.items():
        source, weight = qc.fake_quants(live)[f"{name}.weight"], seen[f"{name}.weight"]
        steps = quantize(weight, QParams(*source.qparams()), quant_min=-128, quant_max=127,
                         ch_axis=source.ch_axis)  # fmt: skip
        gone = live.get_submodule(norm).weight == 0
        steps.movedim(source.ch_axis, 0)[gone] = 0
        assert constants[f"{name}.weight.integers"].tolist() == steps.tolist()
        assert constants[f"{name}.weight.scale"].tobytes() == source.qparams().scale.numpy().tobytes()


def test_no_batch_norm_and_no_stray_quantizer_is_in_the_file(made):
    folded = exported_as_prepared(trained("fold"), (torch.randn(4, 3, 6, 6),))
    assert [node.op_type for node in made.proto.graph.node] == [n.op_type for n in folded.proto.graph.node]
    assert {n.name for n in made.nodes("QuantizeLinear")} == {n.name for n in folded.nodes("QuantizeLinear")}
    assert not made.nodes("BatchNormalization")


def test_a_file_with_folded_batch_norms_computes_what_was_trained(live, made):
    x = torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        expected, folded = live(x), deployed(live, in_float32=True)(x)
        assert torch.equal(made.frozen.model(x), folded)
    step = float(qc.fake_quants(live)["fc.output"].qparams().scale)
    for found in (folded, made.file()(x), made.file(optimised=True)(x)):
        assert float((found - expected).abs().max()) < 1.5 * step


def test_the_model_that_was_trained_keeps_its_batch_norms(live):
    before = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    deployed(live, in_float32=True)
    qc.convert(live)
    after = live.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_convert_folds_too_and_counts_in_steps(live):
    x = torch.randn(4, 3, 6, 6)
    assert not [m for m in qc.convert(live).modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    report = qc.compare_integers(live, [lambda m: m(x)], bias="exact")
    assert [op.name for op in report.ops if op.op == "batch_norm"] == []
    assert all(op.arithmetic == "integer" and op.more == 0 for op in report.ops)
    assert report.equal_share > 0.999


class TwiceCalled(nn.Module):
    """Its convolution is called twice, with a batch norm behind each call: there is no one weight to fold."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.second(self.conv(torch.relu(self.first(self.conv(x)))))


@pytest.mark.parametrize("bn", ["fold", "keep"])
def test_a_batch_norm_that_cannot_be_folded_is_an_op_of_its_own(bn):
    x = torch.randn(4, 4, 5, 5)
    model = qc.prepare(TwiceCalled(), {"": qc.get_default_qconfig()}, example_inputs=x, stage="qat", bn=bn)
    model.train()(x)
    qc.set_fake_quantize(model, qc.FakeQuantState.VALIDATION)
    model.eval()
    made = exported_as_prepared(model, (x,))
    producer = {name: node for node in made.proto.graph.node for name in node.output}
    readers = {name: node.op_type for node in made.proto.graph.node for name in node.input}
    for conv in made.nodes("Conv"):
        weight = producer[conv.input[1]]
        assert (weight.op_type, weight.input[0]) == ("DequantizeLinear", "conv.weight.integers")
        assert producer[conv.input[0]].op_type == "DequantizeLinear"
        assert readers[conv.output[0]] == "QuantizeLinear"
    assert len(made.nodes("Conv")) == len(made.nodes("BatchNormalization")) == 2
    with torch.no_grad():
        torch.testing.assert_close(made.file()(x), model(x), rtol=0, atol=0.05)


def test_a_batch_norm_behind_a_grouped_transposed_convolution_is_folded():
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.BatchNorm2d(6), nn.ReLU())
    nn.init.uniform_(net[1].weight, -1.5, 1.5)
    x = torch.randn(4, 4, 5, 5)
    model = qc.prepare(net, {"": qc.get_default_qconfig()}, example_inputs=x, stage="qat", bn="keep")
    model.train()(x)
    qc.set_fake_quantize(model, qc.FakeQuantState.VALIDATION)
    made = exported_as_prepared(model.eval(), (x,))
    assert not made.nodes("BatchNormalization")
    assert made.constants()["0.weight.scale"].shape == (3,)
    with torch.no_grad():
        step = float(qc.fake_quants(model)["2.output"].qparams().scale)
        assert float((made.file()(x) - model(x)).abs().max()) <= 1.01 * step


class NormAct(nn.BatchNorm2d):
    def forward(self, x):
        return torch.relu(super().forward(x))


@pytest.mark.parametrize("bn", ["fold", "keep", "freeze"])
def test_the_batch_norm_of_a_module_with_an_activation_is_folded(bn):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), NormAct(6), nn.Conv2d(6, 4, 1), NormAct(4))
    x = torch.randn(4, 3, 8, 8)
    model = qc.prepare(net, {"": qc.get_default_qconfig()}, example_inputs=x, stage="qat", bn=bn)
    model.train()(x)
    qc.set_fake_quantize(model, qc.FakeQuantState.VALIDATION)
    made = exported_as_prepared(model.eval(), (x,))
    assert (len(made.nodes("Conv")), made.nodes("BatchNormalization")) == (2, [])
    with torch.no_grad():
        step = float(qc.fake_quants(model)["3.relu_0.output"].qparams().scale)
        for deployed_model in (made.file(), qc.convert(model)):
            assert float((deployed_model(x) - model(x)).abs().max()) <= 1.01 * step


@pytest.mark.parametrize("bn", ["fold", "keep"])
def test_a_model_in_bfloat16_computes_in_float32_with_the_same_weights_and_grids(bn):
    model = trained(bn, dtype=torch.bfloat16)
    x = torch.randn(4, 3, 6, 6, dtype=torch.bfloat16)
    made = exported_as_prepared(model, (x,))
    assert made.proto.graph.input[0].type.tensor_type.elem_type == 1  # float32
    seen = seen_by_weight_quantizers(copy.deepcopy(model), x)
    constants = made.constants()
    for name, source in qc.fake_quants(model).items():
        assert constants[f"{name}.scale"].tobytes() == source.qparams().scale.numpy().tobytes()
    source = qc.fake_quants(model)["depthwise.weight"]
    steps = quantize(seen["depthwise.weight"].float(), QParams(*source.qparams()), quant_min=-128,
                     quant_max=127, ch_axis=0)  # fmt: skip
    if bn == "keep":
        steps[model.norm_2.weight == 0] = 0
    assert steps.tolist() == constants["depthwise.weight.integers"].tolist()
    with torch.no_grad():
        expected = model(x).float()
    found = made.file()(x)  # a tensor in bfloat16 is widened on its way in
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1 * float(expected.abs().max()))
