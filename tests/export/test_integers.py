"""Integers of a file beside the model's: a fault stays where it is, op by op, and spreads as they flow."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from quantcfg.export.integers import Integers
from quantcfg.export.session import open_session
from quantcfg.preparation.state import plan_of
from quantcfg.qconfig import get_default_qconfig
from tests.export.exported import exported
from tests.prepare.models import CASES


class Net(nn.Module):
    """Module and argument names that end in underscores, a layer that is called twice, an add."""

    def __init__(self):
        super().__init__()
        self.first_ = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x_):
        x = torch.relu(self.first_(x_))
        return self.last(self.twice(self.twice(x)) + x)


def compared(made, proto, folder, *, apart, optimised=False):
    (value,) = proto.graph.input
    integers = Integers(proto, made.frozen, plan_of(made.model), made.program.call)
    integers.write_cut(folder / "cut.onnx", apart=apart)
    feeds = {value.name: made.program.call.tensors[0].numpy()}
    return integers.compare(open_session(folder / "cut.onnx", optimised=optimised), feeds)


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    return exported(Net(), {"": get_default_qconfig()}, (torch.randn(4, 3, 8, 8),))


@pytest.fixture
def faulty(made):
    """The file with one integer of the first convolution changed."""
    proto = onnx.ModelProto()
    proto.CopyFrom(made.proto)
    (weight,) = [t for t in proto.graph.initializer if t.name == "first_.weight.integers"]
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0, 0, 0, 0] = -array[0, 0, 0, 0] // 2
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    return proto


def test_every_quantizer_is_compared_with_its_op(made, tmp_path):
    found = compared(made, made.proto, tmp_path, apart=True)
    assert [(item.name, item.op, item.num_values) for item in found] == [
        ("input.x_", "input", 4 * 3 * 64),
        ("relu_0.output", "conv2d", 4 * 8 * 64),
        ("twice.output", "conv2d", 4 * 8 * 64),
        ("add_0.output", "conv2d", 4 * 8 * 64),
        ("last.output", "conv2d", 4 * 4 * 64),
    ]
    assert all(item.num_different <= 1 and item.max_steps <= 1 for item in found)


def test_a_fault_is_that_of_its_op_alone(made, faulty, tmp_path):
    apart = compared(made, faulty, tmp_path, apart=True)
    assert [item.name for item in apart if item.num_different > 1] == ["relu_0.output"]
    flowing = compared(made, faulty, tmp_path, apart=False)
    assert [item.name for item in flowing if item.num_different > 1] == [
        "relu_0.output", "twice.output", "add_0.output", "last.output"
    ]  # fmt: skip


def test_a_fault_does_not_reach_the_ops_behind_it(made, faulty, tmp_path):
    right, wrong = (compared(made, proto, tmp_path, apart=True) for proto in (made.proto, faulty))
    assert [a == b for a, b in zip(right, wrong, strict=True)] == [True, False, True, True, True]


@pytest.mark.parametrize("case", ["resnet", "encoder_sdpa", "structured"])
def test_each_op_of_a_file_makes_the_integers_of_the_model(case, tmp_path):
    torch.manual_seed(0)
    make, inputs = CASES[case]
    made = exported(make(), {"": get_default_qconfig()}, inputs())
    integers = Integers(made.proto, made.frozen, plan_of(made.model), made.program.call)
    integers.write_cut(tmp_path / "cut.onnx", apart=True)
    feeds = made.file().feeds(made.program.call)
    found = integers.compare(open_session(tmp_path / "cut.onnx", optimised=False), feeds)
    assert len(found) == len(made.nodes("QuantizeLinear"))
    assert sum(item.num_different for item in found) <= 1e-4 * sum(item.num_values for item in found)
    assert max(item.max_steps for item in found) <= 1


def test_what_an_op_reads_is_an_input_of_the_cut_file(made, tmp_path):
    integers = Integers(made.proto, made.frozen, plan_of(made.model), made.program.call)
    integers.write_cut(tmp_path / "cut.onnx", apart=True)
    cut = onnx.load(tmp_path / "cut.onnx")
    assert {value.type.tensor_type.elem_type for value in cut.graph.output} == {onnx.TensorProto.INT8}
    assert [value.name for value in cut.graph.input][1:] == [f"given.{v.name}" for v in cut.graph.output]
    assert all(array.dtype == np.int8 for array in integers.expected.values())
