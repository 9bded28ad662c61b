"""Which ops of known architectures are quantized, by hand-written tables of what an int8 deployment needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, fake_quants, plan_of, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig

Table = dict[str, str]

IMAGE = torch.zeros(1, 3, 32, 32)


def prepared(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    def run(module: nn.Module) -> Any:
        return module(*args, **kwargs)

    return prepare(model.eval(), {"": get_default_qconfig()}, forward=run)


def roles(model: nn.Module, *args: Any, **kwargs: Any) -> Table:
    return {row.name: row.role for row in plan_of(prepared(model, *args, **kwargs)).rows}


def as_role(role: str) -> Callable[..., Table]:
    """Makes rows of names, separated by spaces, behind a common prefix."""
    return lambda names, prefix="": {prefix + name: role for name in names.split()}


QUANTIZED, FUSED, PASSED, FLOAT = map(as_role, ("quantized", "fused", "passed through", "float"))


def torchvision_model(name: str, **options: Any) -> nn.Module:
    models = pytest.importorskip("torchvision.models", reason="needs torchvision: make models")
    return models.get_model(name, weights=None, **options)


def resnet_block(path: str, *, downsample: bool) -> Table:
    table = FUSED("conv1 bn1 conv2 bn2 add_0", path) | QUANTIZED("relu relu:1", path)
    if downsample:
        # The other summand of the add: it comes from memory, so it is on a grid of its own.
        table |= QUANTIZED("downsample.0", path) | FUSED("downsample.1", path)
    return table


RESNET_BLOCKS = [f"layer{layer}.{block}." for layer in (1, 2, 3, 4) for block in (0, 1)]
RESNET_DOWNSAMPLED = ["layer2.0.", "layer3.0.", "layer4.0."]


def resnet18_table() -> Table:
    expected = FUSED("conv1 bn1") | QUANTIZED("relu avgpool fc") | PASSED("maxpool flatten_0")
    for path in RESNET_BLOCKS:
        expected |= resnet_block(path, downsample=path in RESNET_DOWNSAMPLED)
    return expected


def test_the_roles_in_resnet18() -> None:
    assert roles(torchvision_model("resnet18"), IMAGE) == resnet18_table()


def test_the_roles_in_the_backbone_of_a_detector_with_frozen_batch_norms() -> None:
    ops = pytest.importorskip("torchvision.ops", reason="needs torchvision: make models")
    model = torchvision_model("resnet18", norm_layer=ops.FrozenBatchNorm2d)

    assert roles(model, IMAGE) == resnet18_table()


def test_resnet18_has_the_quantizers_of_an_int8_deployment_and_no_other() -> None:
    weights = ["conv1", "fc", *(f"{path}downsample.0" for path in RESNET_DOWNSAMPLED)]
    weights += [f"{path}conv{number}" for path in RESNET_BLOCKS for number in (1, 2)]
    outputs = ["relu", "avgpool", "fc", *(f"{path}downsample.0" for path in RESNET_DOWNSAMPLED)]
    outputs += [f"{path}{relu}" for path in RESNET_BLOCKS for relu in ("relu", "relu:1")]

    found = fake_quants(prepared(torchvision_model("resnet18"), IMAGE))

    assert sorted(found) == sorted(
        ["input.x", *(f"{name}.weight" for name in weights), *(f"{name}.output" for name in outputs)]
    )
    assert len(found) == 44


MOBILENET_BLOCKS = [f"features.{number}." for number in range(2, 18)]
MOBILENET_RESIDUAL = [f"features.{number}." for number in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]


def mobilenet_block(path: str, *, residual: bool) -> Table:
    table = FUSED("conv.0.0 conv.0.1 conv.1.0 conv.1.1 conv.3", path)
    table |= QUANTIZED("conv.0.2 conv.1.2", path)
    return table | (
        FUSED("conv.2", path) | QUANTIZED("add_0", path) if residual else QUANTIZED("conv.2", path)
    )


def test_the_roles_in_mobilenet_v2() -> None:
    expected = FUSED("0.0 0.1 1.conv.0.0 1.conv.0.1 1.conv.2 18.0 18.1", "features.")
    expected |= QUANTIZED("0.2 1.conv.0.2 1.conv.1 18.2", "features.")
    expected |= QUANTIZED("adaptive_avg_pool2d_0 classifier.1") | PASSED("flatten_0 classifier.0")
    for path in MOBILENET_BLOCKS:
        expected |= mobilenet_block(path, residual=path in MOBILENET_RESIDUAL)

    assert roles(torchvision_model("mobilenet_v2"), IMAGE) == expected


def test_mobilenet_v2_has_the_quantizers_of_an_int8_deployment_and_no_other() -> None:
    weights = ["features.0.0", "features.1.conv.0.0", "features.1.conv.1", "features.18.0", "classifier.1"]
    outputs = ["features.0.2", "features.1.conv.0.2", "features.1.conv.1", "features.18.2", "classifier.1"]
    outputs.append("adaptive_avg_pool2d_0")
    for path in MOBILENET_BLOCKS:
        weights += [f"{path}conv.0.0", f"{path}conv.1.0", f"{path}conv.2"]
        last = "add_0" if path in MOBILENET_RESIDUAL else "conv.2"
        outputs += [f"{path}conv.0.2", f"{path}conv.1.2", f"{path}{last}"]

    found = fake_quants(prepared(torchvision_model("mobilenet_v2"), IMAGE))

    assert sorted(found) == sorted(
        ["input.x", *(f"{name}.weight" for name in weights), *(f"{name}.output" for name in outputs)]
    )


def squeeze_excitation(path: str, activation: str) -> Table:
    table = QUANTIZED("avgpool activation fc2 scale_activation mul_0", path)
    return table | (FUSED if activation == "relu" else QUANTIZED)("fc1", path)


def activated(path: str, activation: str) -> Table:
    """Convolution, batch norm, activation: ReLU ends the chain, the smooth ones are ops of their own."""
    table = FUSED("1", path) | QUANTIZED("2", path)
    return table | (FUSED if activation == "relu" else QUANTIZED)("0", path)


def projection(block: str, path: str, *, residual: bool) -> Table:
    table = FUSED("1", path)
    return table | (FUSED("0", path) | QUANTIZED("add_0", block) if residual else QUANTIZED("0", path))


def test_the_roles_in_mobilenet_v3_small() -> None:
    expected = activated("features.0.", "hardswish") | activated("features.12.", "hardswish")
    expected |= activated("features.1.block.0.", "relu") | squeeze_excitation("features.1.block.1.", "relu")
    expected |= projection("features.1.", "features.1.block.2.", residual=False)
    for number in (2, 3):
        block = f"features.{number}."
        expected |= activated(f"{block}block.0.", "relu") | activated(f"{block}block.1.", "relu")
        expected |= projection(block, f"{block}block.2.", residual=number == 3)
    for number in range(4, 12):
        block = f"features.{number}."
        expected |= activated(f"{block}block.0.", "hardswish") | activated(f"{block}block.1.", "hardswish")
        expected |= squeeze_excitation(f"{block}block.2.", "relu")
        expected |= projection(block, f"{block}block.3.", residual=number in (5, 6, 8, 10, 11))
    expected |= QUANTIZED("avgpool classifier.0 classifier.1 classifier.3")
    expected |= PASSED("flatten_0 classifier.2")

    assert roles(torchvision_model("mobilenet_v3_small"), IMAGE) == expected


def test_the_roles_in_efficientnet_b0() -> None:
    expected = activated("features.0.", "silu") | activated("features.8.", "silu")
    expected |= activated("features.1.0.block.0.", "silu")
    expected |= squeeze_excitation("features.1.0.block.1.", "silu")
    expected |= projection("features.1.0.", "features.1.0.block.2.", residual=False)
    for stage, blocks in {2: 2, 3: 2, 4: 3, 5: 3, 6: 4, 7: 1}.items():
        for number in range(blocks):
            block = f"features.{stage}.{number}."
            expected |= activated(f"{block}block.0.", "silu") | activated(f"{block}block.1.", "silu")
            expected |= squeeze_excitation(f"{block}block.2.", "silu")
            expected |= projection(block, f"{block}block.3.", residual=number > 0)
    expected |= QUANTIZED("avgpool classifier.1") | PASSED("flatten_0 classifier.0")

    assert roles(torchvision_model("efficientnet_b0"), IMAGE) == expected


def test_timm_modules_of_batch_norm_and_activation_are_folded() -> None:
    """Chains as in a deployment: none of timm's layers has a quantizer before its batch norm."""
    timm = pytest.importorskip("timm", reason="needs timm: make models")
    block = "blocks.1.0."

    table = roles(timm.create_model("mobilenetv3_small_100"), IMAGE)

    expected = FUSED("bn1.batch_norm_0") | QUANTIZED("conv_stem bn1.act conv_head act2")  # hardswish
    expected |= FUSED("conv_pw bn1.batch_norm_0 conv_dw bn2.batch_norm_0 bn3.batch_norm_0", block)  # ReLU
    expected |= QUANTIZED("bn1.act bn2.act conv_pwl", block)
    assert {name: table.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "left"), [("efficientnet_b0", 0), ("regnetx_002", 0), ("resnetv2_50", 17), ("densenet121", 62)]
)
def test_timm_batch_norms_stay_only_where_no_layer_is_before_them(name: str, left: int) -> None:
    """ResNetV2 and DenseNet normalize sums and concatenations; all else is in the layer before it."""
    timm = pytest.importorskip("timm", reason="needs timm: make models")
    model = timm.create_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)

    folded = prepared(model, IMAGE)

    norms = [row for row in plan_of(folded).rows if row.op == "batch_norm"]
    assert sum(not row.reason.startswith("folded into") for row in norms) == left
    set_fake_quantize(folded, FakeQuantState.FLOAT)
    with torch.no_grad():
        torch.testing.assert_close(folded(IMAGE), model(IMAGE), rtol=1e-5, atol=1e-5)


def test_the_roles_in_vision_transformer() -> None:
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision: make models")
    model = torchvision.models.VisionTransformer(32, 16, 1, 2, 32, 64)  # ViT-B/16 with one small layer
    layer = "encoder.layers.encoder_layer_0."

    expected = QUANTIZED("conv_proj cat_0 encoder.add_0 encoder.ln heads.head")
    expected |= PASSED("reshape_0 permute_0 encoder.dropout getitem_0") | FLOAT("expand_0")
    expected |= QUANTIZED("ln_1 self_attention add_0 ln_2 mlp.0 mlp.1 add_1", layer)
    expected |= PASSED("self_attention.transpose_0 self_attention.transpose_1 dropout mlp.2", layer)
    expected |= FUSED("mlp.3 mlp.4", layer)
    assert roles(model, IMAGE) == expected


def swin_block(path: str, *, shifted: bool) -> Table:
    table = QUANTIZED("norm1 norm2 mlp.0 mlp.1 add_0 add_1", path) | FUSED("mlp.3 mlp.4", path)
    table |= PASSED("mlp.2", path)
    attention = f"{path}attn."
    table |= FLOAT("getitem_0 view_0 permute_0 contiguous_0 unsqueeze_0", attention)  # the bias table
    table |= QUANTIZED("linear_0 mul_0 matmul_0 add_0 softmax_0 matmul_1 linear_1", attention)
    table |= PASSED("pad_0 view_1 permute_1 reshape_0 reshape_1 permute_2 transpose_0 transpose_1", attention)
    table |= PASSED("getitem_1 getitem_2 getitem_3 getitem_4 dropout_0 dropout_1 contiguous_1", attention)
    if not shifted:
        return table | PASSED("reshape_2 view_2 permute_3 reshape_3", attention)
    table |= PASSED("roll_0 roll_1 reshape_3 view_3 view_5 permute_4 reshape_4", attention)
    mask = " ".join(f"setitem_{number}" for number in range(9))
    table |= FLOAT(f"new_zeros_0 {mask} view_2 permute_3 reshape_2 unsqueeze_1 unsqueeze_2", attention)
    table |= FLOAT("sub_0 masked_fill_0 masked_fill_1 unsqueeze_3 unsqueeze_4", attention)
    return table | FLOAT("add_1 view_4", attention)  # the scores that hold the mask


def test_the_roles_in_swin() -> None:
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision: make models")
    model = torchvision.models.SwinTransformer([4, 4], 16, [2, 1], [2, 4], [4, 4])  # Swin-T, small

    expected = QUANTIZED("features.0.0 features.0.2 norm avgpool head") | PASSED("permute flatten")
    expected |= PASSED("features.0.1")
    expected |= swin_block("features.1.0.", shifted=False) | swin_block("features.1.1.", shifted=True)
    expected |= PASSED("pad_0 getitem_0 getitem_1 getitem_2 getitem_3 cat_0", "features.2.")
    expected |= QUANTIZED("norm reduction", "features.2.") | swin_block("features.3.0.", shifted=False)
    assert roles(model, IMAGE) == expected


def bert(attention: str) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="needs transformers: make models")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=100
    )
    config._attn_implementation = attention
    return transformers.BertModel(config)


def padded() -> dict[str, Tensor]:
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.arange(12).reshape(2, 6), "attention_mask": mask}


def bert_table() -> Table:
    """What fused attention and attention spelled out have in common."""
    table = QUANTIZED("word_embeddings token_type_embeddings position_embeddings", "embeddings.")
    table |= QUANTIZED("add_0 add_1 LayerNorm", "embeddings.") | PASSED("embeddings.dropout")
    layer = "encoder.layer.0."
    for output in ("attention.output.", "output."):
        table |= FUSED("dense dropout", layer + output) | QUANTIZED("add_0 LayerNorm", layer + output)
    table |= QUANTIZED("intermediate.dense intermediate.intermediate_act_fn", layer)
    table |= QUANTIZED("query key value", f"{layer}attention.self.")
    table |= PASSED("view_0 view_1 view_2 transpose_0 transpose_1 transpose_2", f"{layer}attention.self.")
    return table | PASSED("pooler.getitem_0") | QUANTIZED("pooler.dense pooler.activation")


def test_the_roles_in_bert() -> None:
    attention = "encoder.layer.0.attention.self."
    expected = bert_table() | QUANTIZED("scaled_dot_product_attention_0", attention)
    expected |= PASSED("transpose_3 reshape_0 reshape_1 contiguous_0 contiguous_1", attention)

    assert roles(bert("sdpa"), **padded()) == expected


def test_the_roles_in_bert_with_attention_spelled_out() -> None:
    attention = "encoder.layer.0.attention.self."
    expected = bert_table() | QUANTIZED("matmul_0 mul_0 softmax_0 matmul_1", attention)
    expected |= PASSED("transpose_3 transpose_4 dropout_0 contiguous_0 contiguous_1 reshape_0", attention)
    expected |= FLOAT("zeros_0 where_0") | FLOAT("add_0", attention)  # the mask, and the scores that hold it

    assert roles(bert("eager"), **padded()) == expected


def test_bert_hides_what_the_mask_hides() -> None:
    model = bert("eager")
    inputs = padded()
    quantized = prepared(model, **inputs)
    changed = inputs["input_ids"].clone()
    changed[1, 4:] = 77

    with calibrating(quantized):
        quantized(**inputs)
        quantized(**(inputs | {"input_ids": changed}))
    set_fake_quantize(quantized, FakeQuantState.VALIDATION)

    with torch.no_grad():
        first = quantized(**inputs).last_hidden_state[1, :4]
        second = quantized(**(inputs | {"input_ids": changed})).last_hidden_state[1, :4]
    assert torch.equal(first, second)


def test_retinanet_head_on_two_levels() -> None:
    retinanet = pytest.importorskip(
        "torchvision.models.detection.retinanet", reason="needs torchvision: make models"
    )
    levels = [torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 4, 4)]

    expected: Table = {}
    for head, last in {"classification_head.": "cls_logits", "regression_head.": "bbox_reg"}.items():
        for call in ("", ":1"):  # the weights are shared between the levels, the grids of the maps are not
            for number in range(4):
                expected |= FUSED(f"conv.{number}.0{call}", head) | QUANTIZED(f"conv.{number}.1{call}", head)
            expected |= QUANTIZED(f"{last}{call}", head)
        expected |= PASSED("view_0 permute_0 reshape_0 view_1 permute_1 reshape_1", head)
        expected |= QUANTIZED("cat_0", head)
    model = retinanet.RetinaNetHead(8, 2, 3)
    assert roles(model, levels) == expected
    inputs = [name for name in fake_quants(prepared(model, levels)) if "input" in name]
    assert inputs == ["input.x.0", "input.x.1"]


def test_ssdlite_head_on_two_levels() -> None:
    ssdlite = pytest.importorskip(
        "torchvision.models.detection.ssdlite", reason="needs torchvision: make models"
    )
    model = ssdlite.SSDLiteHead([8, 8], [2, 2], 3, nn.BatchNorm2d)

    expected: Table = {}
    for head in ("regression_head.", "classification_head."):
        for level in ("module_list.0.", "module_list.1."):
            expected |= FUSED("0.0 0.1", head + level) | QUANTIZED("0.2 1", head + level)
        expected |= PASSED("view_0 permute_0 reshape_0 view_1 permute_1 reshape_1", head)
        expected |= QUANTIZED("cat_0", head)
    assert roles(model, [torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 4, 4)]) == expected


@pytest.mark.filterwarnings("ignore")  # torch.ao has much to say about its own future
@pytest.mark.parametrize(("name", "sums", "pools"), [("resnet18", 8, 1), ("mobilenet_v2", 10, 0)])
def test_placement_differs_from_torch_ao_only_where_a_sum_joins_its_convolution(
    name: str, sums: int, pools: int
) -> None:
    """torch.ao quantizes both a convolution and the sum behind it, and pools on the grid of their input."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    model = torchvision_model(name).eval()
    theirs = prepare_fx(model, get_default_qconfig_mapping("x86"), (IMAGE,))
    observers = {module for path, module in theirs.named_modules() if "activation_post_process" in path}
    # `remove_duplicate` leaves one of those that share a grid
    quantizers = fake_quants(prepared(torchvision_model(name), IMAGE))
    outputs = [path for path in quantizers if not path.endswith(".weight")]
    weights = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]

    assert len(outputs) == len(observers) - sums + pools
    assert len(quantizers) - len(outputs) == len(weights)
