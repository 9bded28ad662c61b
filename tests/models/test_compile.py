"""``torch.compile`` of prepared architectures: no graph break, the eager numbers, one graph for all sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import FakeQuantState, calibrating, set_fake_quantize
from quantcfg.qconfig import get_default_qconfig

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch and of the models, about themselves

Batch = dict[str, Tensor]
Case = tuple[nn.Module, Callable[[int], Batch]]
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def resnet18() -> Case:
    models = pytest.importorskip("torchvision.models", reason="needs torchvision: make models")
    return models.resnet18(num_classes=10), lambda size: {"x": torch.randn(size, 3, 64, 64)}


def vit() -> Case:
    transformers = pytest.importorskip("transformers", reason="needs transformers: make models")
    config = transformers.ViTConfig(image_size=32, patch_size=8, **_SMALL)
    return transformers.ViTModel(config), lambda size: {"pixel_values": torch.randn(size, 3, 32, 32)}


def bert() -> Case:
    transformers = pytest.importorskip("transformers", reason="needs transformers: make models")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

    def batch(size: int) -> Batch:
        mask = torch.ones(size, 12, dtype=torch.long)
        mask[-1, 7:] = 0
        return {"input_ids": torch.randint(5, 90, (size, 12)), "attention_mask": mask}

    return transformers.BertModel(transformers.BertConfig(vocab_size=100, **_SMALL, **still)), batch


CASES = {make.__name__: make for make in (resnet18, vit, bert)}


def prepared_of(name: str, state: FakeQuantState) -> tuple[nn.Module, Callable[[int], Batch]]:
    torch.manual_seed(0)
    torch.compiler.reset()
    model, batch = CASES[name]()
    example = batch(4)
    model(**example)  # in training mode: the batch norms see a batch
    prepared = prepare(model.eval(), {"": get_default_qconfig()}, example_inputs=example, stage="qat")
    with calibrating(prepared):
        prepared(**example)
    set_fake_quantize(prepared, state)
    return prepared.train(state is FakeQuantState.QAT), batch


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_a_compiled_model_computes_the_eager_bits_in_one_graph_for_all_batch_sizes(
    name: str, autocast: bool
) -> None:
    prepared, batch = prepared_of(name, FakeQuantState.VALIDATION)
    call = compiled(prepared)
    counters.clear()

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        for size in (4, 3, 5, 6, 8):
            inputs = batch(size)
            expected = first(prepared(**inputs))
            torch.testing.assert_close(first(call(**inputs)), expected, rtol=0, atol=0)
            assert expected.abs().max() > 0

    assert counters["stats"]["unique_graphs"] == 2  # for the first size, and for all others


def losses(call: Any, parameters: Any, batches: list[Batch], *, autocast: bool) -> list[float]:
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    values = []
    for inputs in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = first(call(**inputs)).float().square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        values.append(loss.item())
    return values


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_compiled_training_follows_the_eager_losses(name: str, autocast: bool) -> None:
    prepared, batch = prepared_of(name, FakeQuantState.QAT)
    other = copy.deepcopy(prepared)
    batches = [batch(4) for _ in range(3)]

    eager = losses(prepared, prepared.parameters(), batches, autocast=autocast)
    actual = losses(compiled(other), other.parameters(), batches, autocast=autocast)

    # Sums of another order may round the last bit otherwise, and a value on the edge of a step with it.
    assert actual == pytest.approx(eager, rel=0.05 if autocast else 0.01)
    assert len(set(eager)) == 3
