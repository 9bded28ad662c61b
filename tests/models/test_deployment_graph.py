"""Where our quantizers stand, beside where ONNX Runtime's own static quantization puts Q and DQ pairs.

Both files come from one exporter: without its pairs each is the float graph, and nodes are compared one by
one. Every difference is in a table below, with its reason.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantcfg as qc
from quantcfg.export import onnx_file
from quantcfg.export.calls import Call, varying_axes
from quantcfg.export.deployed import deployed
from quantcfg.export.freeze import freeze
from quantcfg.export.ops import SINGLE
from quantcfg.export.program import export_program
from quantcfg.stages.progress import Silence
from tests.models.placement import Graph, differences
from tests.models.test_roles import bert, padded, torchvision_model

onnx = pytest.importorskip("onnx", reason="needs onnx")
quantization = pytest.importorskip("onnxruntime.quantization", reason="needs onnxruntime")

Inputs = dict[str, Tensor]
Case = tuple[nn.Module, Inputs]


class Batches:
    """One batch, as ONNX Runtime asks for it."""

    def __init__(self, feeds: dict[str, Any]) -> None:
        self.feeds = iter([feeds])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def written(model: nn.Module, inputs: Inputs, path: Path) -> Path:
    call = Call((), inputs)
    program = export_program(model, call, varying_axes([call]), Silence())
    onnx_file.write(onnx_file.to_onnx(program, {}), path)
    return path


@torch.no_grad()
def ours(model: nn.Module, inputs: Inputs, folder: Path) -> Graph:
    def forward(module: nn.Module) -> Any:
        return module(**inputs)

    prepared = qc.prepare(model, {"": qc.get_default_qconfig()}, forward=forward)
    with qc.calibrating(prepared):
        forward(prepared)
    qc.set_fake_quantize(prepared, qc.FakeQuantState.VALIDATION)
    frozen = freeze(deployed(prepared.eval(), in_float32=True), forward, SINGLE)
    return Graph(written(frozen.model, inputs, folder / "ours.onnx"))


@torch.no_grad()
def theirs(model: nn.Module, inputs: Inputs, folder: Path) -> Graph:
    path = written(copy.deepcopy(model), inputs, folder / "float.onnx")
    names = [value.name for value in onnx.load(path, load_external_data=False).graph.input]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs.values(), strict=True)}
    quantization.quantize_static(
        str(path),
        str(folder / "theirs.onnx"),
        Batches(feeds),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        extra_options={"ActivationSymmetric": True},
    )
    return Graph(folder / "theirs.onnx")


def image(size: int) -> Inputs:
    return {"x": torch.randn(2, 3, size, size)}


def resnet18() -> Case:
    return torchvision_model("resnet18"), image(64)


def mobilenet_v2() -> Case:
    return torchvision_model("mobilenet_v2"), image(64)


def mobilenet_v3_small() -> Case:
    return torchvision_model("mobilenet_v3_small"), image(64)


def efficientnet_b0() -> Case:
    return torchvision_model("efficientnet_b0"), image(64)


def vit() -> Case:
    timm = pytest.importorskip("timm", reason="needs timm: make models")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    model.blocks[0].attn.fused_attn = False
    return model, image(32)


def vit_of_torchvision() -> Case:
    models = pytest.importorskip("torchvision.models", reason="needs torchvision: make models")
    return models.VisionTransformer(32, 16, 1, 2, 32, 64), image(32)


def swin() -> Case:
    models = pytest.importorskip("torchvision.models", reason="needs torchvision: make models")
    return models.SwinTransformer([4, 4], 16, [2, 1], [2, 4], [4, 4]), image(32)


def bert_with_padding() -> Case:
    return bert("eager"), padded()


class Detector(nn.Module):
    """Two maps of a backbone, a feature pyramid over them, and the head of RetinaNet on its levels."""

    def __init__(self) -> None:
        from torchvision.models.detection.retinanet import RetinaNetHead
        from torchvision.ops import FeaturePyramidNetwork

        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.pyramid = FeaturePyramidNetwork([8, 16], 8)
        self.head = RetinaNetHead(8, 2, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.first(x).relu()
        maps = self.pyramid({"fine": fine, "coarse": self.second(fine).relu()})
        return self.head(list(maps.values()))


def detector() -> Case:
    pytest.importorskip("torchvision", reason="needs torchvision: make models")
    return Detector(), image(32)


@torch.no_grad()
def lived_in(model: nn.Module) -> nn.Module:
    """The model in evaluation, with no statistic and no bias at 0: those fall out of a file."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) if "var" in name else 0.1 * torch.randn_like(tensor))
    return model.eval()


BIAS = "the bias is an int32 of the product's scale in their file; ours is a float that becomes one"
NORM = "the affine of a norm, a few numbers, is no matrix: it stays in float beside the statistics"
NUMBER = "multiplying with one number changes a scale, and needs no grid for the number"
MASK = "a grid that holds the mask has room for nothing else: theirs has it, ours keeps it out"
SILU = "one op of torch; the file spells it out, and they quantize the sigmoid inside it"
ATTENTION = "one op of torch: all between its inputs, weights and output is in float"
NEIGHBOUR = "they have no rule for this op, and quantize it where a neighbour asks for it: here none does"

CASES: dict[Callable[[], Case], dict[str, dict[str, int]]] = {
    resnet18: {BIAS: {"Conv 2: w, W": 20, "Gemm 2: w, W": 1}},
    mobilenet_v2: {BIAS: {"Conv 2: w, W": 52, "Gemm 2: w, W": 1}},
    mobilenet_v3_small: {
        BIAS: {"Conv 2: w, W": 52, "Gemm 2: w, W": 2},
        NEIGHBOUR: {"HardSwish result: X, x": 1, "ReduceMean 0: X, x": 1},  # the last pooling
    },
    efficientnet_b0: {
        BIAS: {"Conv 2: w, W": 81, "Gemm 2: w, W": 1},
        SILU: {"Sigmoid result: x, X": 49, "Mul 1: x, X": 49},
    },
    vit: {
        BIAS: {"Conv 2: w, W": 1, "Gemm 2: w, W": 1, "Bias 1: w, W": 4},
        NORM: {"LayerNormalization 1: w, W": 3, "LayerNormalization 2: w, W": 3},
        NUMBER: {"Mul 1: w, W": 1},
    },
    vit_of_torchvision: {
        BIAS: {"Conv 2: w, W": 1, "Gemm 2: w, W": 2, "Bias 1: w, W": 3},
        NORM: {"LayerNormalization 1: w, W": 3, "LayerNormalization 2: w, W": 3},
        ATTENTION: {
            "MatMul result: x, X": 3,
            "MatMul 0: x, X": 2,
            "MatMul 1: x, X": 2,
            "Bias 0: x, X": 1,
            "Bias result: x, X": 1,
            "Mul 0: x, X": 2,
            "Mul 1: w, W": 2,
            "Mul result: x, X": 2,
            "Softmax 0: x, X": 1,
            "Softmax result: x, X": 1,
            "Gemm 0: x, X": 1,
        },
    },
    swin: {
        BIAS: {"Conv 2: w, W": 1, "Gemm 2: w, W": 1, "Bias 1: w, W": 12},
        NORM: {"LayerNormalization 1: w, W": 9, "LayerNormalization 2: w, W": 9},
        NUMBER: {"Mul 1: w, W": 3},
        MASK: {"Add 1: w, W": 1, "Add result: x, X": 1, "Softmax 0: x, X": 1},  # of the shifted window
    },
    bert_with_padding: {
        BIAS: {"Gemm 2: w, W": 1, "Bias 1: w, W": 6},
        NORM: {"LayerNormalization 1: w, W": 3, "LayerNormalization 2: w, W": 3},
        NUMBER: {"Mul 1: w, W": 1},
        MASK: {"Where result: x, X": 1, "Add 1: x, X": 1, "Add result: x, X": 1, "Softmax 0: x, X": 1},
        NEIGHBOUR: {"Tanh result: X, x": 1},  # the pooled output
    },
    detector: {BIAS: {"Conv 2: w, W": 26}},
}


@pytest.mark.parametrize("make", CASES)
def test_quantizers_stand_where_a_deployment_has_them(make: Callable[[], Case], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    lived_in(model)

    graph = ours(model, inputs, tmp_path)

    assert graph.split_chains() == []
    assert graph.quantized_twice() == []
    accepted = sum(map(Counter, CASES[make].values()), Counter())
    assert differences(graph, theirs(model, inputs, tmp_path)) == accepted
