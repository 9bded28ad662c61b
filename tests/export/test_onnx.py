"""The ONNX file: what it computes, what stands in it, and what is refused."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from quantcfg.errors import RunError
from quantcfg.export.onnx_graph import requantize_products
from quantcfg.preparation.state import fake_quants
from tests.export.exported import exported, leaves, qconfig
from tests.prepare.models import CASES, ResNet

QUICK = ("resnet", "encoder_sdpa", "structured", "transposed", "tied")
REFUSED = ("branches",)


@pytest.mark.parametrize(
    "case",
    [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES if c not in REFUSED],
)
def test_a_file_computes_what_the_model_does(case):
    torch.manual_seed(0)
    make, inputs = CASES[case]
    args = inputs()
    made = exported(make(), {"": qconfig()}, args)
    with torch.no_grad():
        expected, frozen = leaves(made.model(*args)), leaves(made.frozen.model(*args))
        outputs = leaves(made.file()(*args))
    assert all(torch.equal(x, y) for x, y in zip(frozen, expected, strict=True))
    for x, y in zip(outputs, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0.05 * float(y.abs().max()))
        assert float((x - y).abs().mean()) <= 0.01 * float(y.abs().mean())
    assert len(made.nodes("QuantizeLinear")) == len(made.frozen.activations)


GRIDS = {
    "int8": (qconfig(), "int8", "int8", 20),
    "uint8": (qconfig("quint8", "quint8", affine=True), "uint8", "uint8", 20),
    "int4 weights": (qconfig("qint8", "qint4"), "int8", "int4", 21),
    "uint4 weights": (qconfig("quint8", "quint4", affine=True), "uint8", "uint4", 21),
    "3 bits": (qconfig("qint3", "qint3"), "int8", "int4", 21),
    "12 bits": (qconfig("quint12", "qint8", affine=False), "uint16", "int8", 21),
    "int16": (qconfig("qint16", "qint16"), "int16", "int16", 21),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_each_grid_has_its_type_and_computes_the_same(grid):
    spec, activation, weight, opset = GRIDS[grid]
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    made = exported(small, {"": spec}, (x,))
    types = {t.name: onnx.helper.tensor_dtype_to_string(t.data_type) for t in made.proto.graph.initializer}
    ends = {name.rpartition(".")[0]: kind.removeprefix("TensorProto.").lower() for name, kind in types.items()
            if name.endswith(".zero_point")}  # fmt: skip
    assert made.proto.opset_import[0].version == opset
    assert {kind for name, kind in ends.items() if name.endswith(".weight")} == {weight}
    assert {kind for name, kind in ends.items() if not name.endswith(".weight")} == {activation}
    with torch.no_grad():
        expected = made.model(x)
    tolerance = 0.02 * float(expected.abs().max())
    torch.testing.assert_close(made.file()(x), expected, rtol=0, atol=tolerance)
    made.file(optimised=True)  # the runtime's own changes to the graph leave it a valid one
    (reference,) = ReferenceEvaluator(made.proto).run(None, {made.proto.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(reference), expected, rtol=0, atol=tolerance)


def test_qparams_and_integers_are_those_of_the_model_bit_for_bit():
    torch.manual_seed(0)
    made = exported(ResNet(), {"": qconfig()}, (torch.randn(4, 3, 8, 8),))
    constants, sources = made.constants(), fake_quants(made.model)
    for node in [*made.nodes("QuantizeLinear"), *made.nodes("DequantizeLinear")]:
        source = sources[node.name.rpartition(".")[0]]
        qparams = source.qparams()
        assert constants[node.input[1]].tobytes() == qparams.scale.numpy().tobytes()
        assert np.array_equal(constants[node.input[2]].reshape(-1), qparams.zero_point.numpy())
        if node.input[0] in constants:
            host = made.model.get_submodule(source.name.removesuffix(".weight"))
            steps = (source(host.weight) / qparams.scale.reshape(-1, *[1] * (host.weight.dim() - 1))).round()
            assert np.array_equal(constants[node.input[0]], steps.detach().numpy())


class LargeBiases(nn.Module):
    """Biases beyond int32 in steps of a product of 16 bits with 16 bits."""

    def __init__(self):
        super().__init__()
        self.conv, self.up, self.fc = (
            nn.Conv2d(3, 4, 1),
            nn.ConvTranspose2d(4, 4, 2, groups=2),
            nn.Linear(4, 3),
        )
        for layer in (self.conv, self.up, self.fc):
            nn.init.constant_(layer.bias, 2.0)
            nn.init.uniform_(layer.weight, -0.05, 0.05)

    def forward(self, x):
        return self.fc(self.up(self.conv(x)).mean((2, 3)))


def test_a_bias_that_int32_cannot_hold_is_added_apart():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6) * 0.1
    made = exported(LargeBiases(), {"": qconfig("qint16", "qint16")}, (x,))
    ops = [node.op_type for node in made.proto.graph.node if not node.op_type.endswith("Linear")]
    assert ops == ["Conv", "Add", "ConvTranspose", "Add", "ReduceMean", "Gemm", "Add"]
    with torch.no_grad():
        step = float(fake_quants(made.model)["fc.output"].qparams().scale)
        for optimised in (False, True):
            assert float((made.file(optimised=optimised)(x) - made.model(x)).abs().max()) < 3 * step


class Windows(nn.Module):
    """What Swin does before its projections: pad, roll, and move the windows to the front."""

    def __init__(self):
        super().__init__()
        self.norm, self.project = nn.LayerNorm(64), nn.Linear(64, 96)

    def forward(self, x):
        padded = nn.functional.pad(self.norm(x), (0, 0, 0, 1))
        rolled = torch.roll(padded, 1, dims=1)
        return self.project(rolled.unflatten(1, (2, -1)).flatten(0, 1)).relu()


def test_a_product_behind_padding_is_one_of_integers():
    torch.manual_seed(0)
    x = torch.randn(8, 15, 64)
    made = exported(Windows(), {"": qconfig("quint8", affine=True)}, (x,))
    with torch.no_grad():
        expected = made.model(x)
        step = float(fake_quants(made.model)["relu_0.output"].qparams().scale)
        for optimised in (False, True):
            off = (made.file(optimised=optimised)(x) - expected).abs() > step / 2
            assert float(off.float().mean()) < 0.001


PADDED = """
<ir_version: 9, opset_import: ["": 20]>
padded (int8[2, 3] q, float[4, 5] w) => (float[2, 5] y)
<float s = {0.1}, int8 z = {0}, int64[4] pads = {0, 0, 0, 1}, float fill = {FILL}>
{ x = DequantizeLinear(q, s, z)  p = Pad(x, pads, fill)  y = MatMul(p, w) }
"""


@pytest.mark.parametrize(("fill", "ops"), [("0", ["QuantizeLinear", "DequantizeLinear"]), ("0.03", [])])
def test_what_padding_puts_beside_the_grid_is_not_quantized(fill, ops):
    model = ir.from_onnx_text(PADDED.replace("FILL", fill))
    requantize_products(model.graph)
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "Pad", *ops, "MatMul"]


def test_no_weight_is_stored_in_float():
    made = exported(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), {"": qconfig()},
                    (torch.randn(4, 64),))  # fmt: skip
    floats = [c for c in made.constants().values() if c.dtype == np.float32]
    assert max(c.size for c in floats) == 64
    assert made.proto.ByteSize() < 2 * 64 * 64 + 4096


def test_a_fused_chain_has_no_quantizer_inside():
    made = exported(ResNet(), {"": qconfig()}, (torch.randn(4, 3, 8, 8),))
    producer = {name: node.op_type for node in made.proto.graph.node for name in node.output}
    readers = [producer[name] for node in made.nodes("Relu") for name in node.input]
    assert set(readers) <= {"Conv", "Add"}
    adds = [producer[name] for node in made.nodes("Add") for name in node.input]
    assert "Conv" in adds


def test_the_batch_and_the_sequence_may_have_any_length():
    make, inputs = CASES["encoder_sdpa"]
    made = exported(make(), {"": qconfig()}, inputs())
    shapes = [[d.dim_param for d in v.type.tensor_type.shape.dim] for v in made.proto.graph.input]
    assert shapes == [["batch", "sequence"], ["batch", "sequence"]]
    ids, keep = torch.randint(1, 9, (5, 4)), torch.ones(5, 4, dtype=torch.long)
    with torch.no_grad():
        expected = made.model(ids, keep)
    torch.testing.assert_close(made.file()(ids, keep), expected, rtol=0, atol=0.05)


def test_one_sample_is_enough_for_a_batch_of_any_size():
    made = exported(nn.Sequential(nn.Linear(4, 4)), {"": qconfig()}, (torch.randn(1, 4),))
    assert made.file()(torch.randn(7, 4)).shape == (7, 4)


class OneByOne(nn.Module):
    """Its forward is unrolled: a file of it has as many samples as the batch it was made with."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, bias):
        return torch.stack([self.fc(row) for row in x]) + bias


@pytest.mark.parametrize("num_samples", [1, 3])
def test_an_axis_that_the_model_fixes_is_a_number_in_the_file(num_samples, capfd):
    args = (torch.randn(num_samples, 4), torch.randn(2, 4).mean(0, keepdim=True))
    made = exported(OneByOne(), {"": qconfig()}, args)
    shapes = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.proto.graph.input
    ]
    assert shapes[0] == [num_samples, 4]
    with torch.no_grad():
        torch.testing.assert_close(made.file()(*args), made.model(*args), rtol=0, atol=0.01)
    with pytest.raises(
        RunError, match=f"input 0 of the file has {num_samples} along axis 0, and a batch has 5"
    ):
        made.file()(torch.randn(5, 4), args[1])
    assert capfd.readouterr() == ("", "")


class Various(nn.Module):
    """Returns numbers, a string and nothing beside tensors, one of them a constant."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("anchors", torch.arange(6.0).reshape(2, 3))

    def forward(self, x):
        y = self.fc(x)
        return {"y": y, "anchors": self.anchors, "n": 3, "none": None, "kind": "box", "pair": (0.5, y + 1)}


def test_results_that_are_no_tensors_are_not_in_the_file():
    x = torch.randn(3, 4)
    made = exported(Various(), {"": qconfig()}, (x,))
    assert [value.name for value in made.proto.graph.output] == ["y", "anchors", "pair_1"]
    with torch.no_grad():
        found, expected = made.file()(x), made.model(x)
    assert (found["n"], found["none"], found["kind"], found["pair"][0]) == (3, None, "box", 0.5)
    torch.testing.assert_close(leaves(found), leaves(expected), rtol=0, atol=0.01)


def test_nothing_of_this_machine_is_in_the_file():
    made = exported(ResNet(), {"": qconfig()}, (torch.randn(4, 3, 8, 8),))
    text = made.proto.SerializeToString()
    assert b".py" not in text
    assert made.proto.graph.name == "main_graph"


def test_control_flow_on_values_is_refused_with_its_line(capfd):
    make, inputs = CASES["branches"]
    with pytest.raises(RunError) as raised:
        exported(make(), {"": qconfig()}, inputs())
    assert raised.value.message.startswith("torch.export refuses the model at ")
    assert "tests/prepare/models.py:" in raised.value.message
    assert capfd.readouterr() == ("", "")


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.lstm(packed)[1][0]


def test_packed_sequences_are_refused_by_their_op():
    with pytest.raises(RunError) as raised:
        exported(Packed(), {"": qconfig()}, (torch.randn(3, 5, 4), torch.tensor([5, 3, 2])))
    assert "_pack_padded_sequence_0" in raised.value.hint
    assert "padded tensors" in raised.value.hint


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.inner = nn.Linear(4, 4), nn.Module()

    def forward(self, x):
        return self.fc(x) + torch.linalg.svdvals(x)


def test_an_op_that_onnx_lacks_is_named():
    with pytest.raises(RunError) as raised:
        exported(Unknown(), {"": qconfig()}, (torch.randn(4, 4),))
    assert raised.value.message.startswith("the ONNX exporter cannot express 'aten._linalg_svd'")
