"""A sentence encoder of the usual size keeps its embeddings when batches are padded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import quantcfg as qc

transformers = pytest.importorskip("transformers", reason="install it with `make models`")


def batch(size: int = 4, length: int = 32) -> dict[str, Tensor]:
    ids = torch.randint(1000, 20000, (size, length), generator=torch.Generator().manual_seed(0))
    keep = torch.arange(length) < torch.tensor([length, 21, 9, 3])[:, None]
    return {"input_ids": ids, "attention_mask": keep.long()}


def embeddings(model: nn.Module) -> Tensor:
    inputs = batch()
    keep = inputs["attention_mask"][..., None]
    return (model(**inputs).last_hidden_state * keep).sum(1) / keep.sum(1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert_keeps_its_sentence_embeddings_under_plain_w8a8(attention: str, tmp_path: Path) -> None:
    config_file = tmp_path / "w8a8.yaml"
    config_file.write_text("version: 1\nqconfig: {global: w8a8}\n")
    torch.manual_seed(0)
    config = transformers.BertConfig(attn_implementation=attention)
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        expected = embeddings(model)
        prepared = qc.prepare(model, qc.load_config(config_file), example_inputs=batch())
        with qc.calibrating(prepared):
            embeddings(prepared)
        qc.set_fake_quantize(prepared, qc.FakeQuantState.VALIDATION)
        actual = embeddings(prepared)

    assert torch.cosine_similarity(actual, expected, dim=-1).min() > 0.99
    assert min(module.observer.min_val.min() for module in qc.fake_quants(prepared).values()) > -1000
