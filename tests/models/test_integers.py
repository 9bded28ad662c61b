"""The integer form of real architectures: the fake-quant model in float64, integer by integer."""

import pytest
import torch
from torch import nn

import quantcfg as qc
from tests.models.operators import declare_operators

declare_operators()


def _image_classifier(name):
    models = pytest.importorskip("torchvision").models
    model = models.get_model(name, weights=None, num_classes=10).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, 3, 64, 64))  # statistics that leave a signal
    images = torch.randn(2, 3, 64, 64)
    return model.eval(), lambda m: m(images)


def _bert():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    ids = torch.randint(0, 100, (2, 16))
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=100, **sizes))
    return model.eval(), lambda m: m(input_ids=ids, attention_mask=torch.ones_like(ids))


MODELS = {
    "resnet18": lambda: _image_classifier("resnet18"),
    "mobilenet_v3_small": lambda: _image_classifier("mobilenet_v3_small"),
    "bert": _bert,
}


@pytest.mark.parametrize("name", MODELS)
def test_integers_are_those_of_the_fake_quant_model_but_for_the_rounding_of_float32(name):
    torch.manual_seed(0)
    net, forward = MODELS[name]()
    model = _calibrated(net, forward)
    report = qc.compare_integers(model, [forward], bias="exact")
    assert not [op.name for op in report.ops if op.more or op.own]
    assert report.equal_share >= 0.9999
    assert not report.in_float


def _calibrated(net: nn.Module, forward):
    model = qc.prepare(net, {"": qc.get_default_qconfig()}, forward=forward)
    with qc.calibrating(model):
        forward(model)
    qc.set_fake_quantize(model, qc.FakeQuantState.VALIDATION)
    return model
