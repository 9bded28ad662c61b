"""Text generation with a key-value cache on prepared models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantcfg as qc
from quantcfg.errors import QuantcfgWarning

transformers = pytest.importorskip("transformers", reason="install it with `make models`")

IDS = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(0))
SOUND = torch.randn(2, 16, 100, generator=torch.Generator().manual_seed(0))
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}

Inputs = dict[str, Tensor]


def gpt2() -> tuple[nn.Module, Inputs, Inputs]:
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=64)
    return transformers.GPT2LMHeadModel(config), {"input_ids": IDS}, {"input_ids": IDS}


def llama() -> tuple[nn.Module, Inputs, Inputs]:
    config = transformers.LlamaConfig(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, hidden_size=32,
        intermediate_size=64, vocab_size=64, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), {"input_ids": IDS}, {"input_ids": IDS}


def t5() -> tuple[nn.Module, Inputs, Inputs]:
    config = transformers.T5Config(
        num_layers=2, num_heads=2, d_model=32, d_kv=16, d_ff=64, vocab_size=64, decoder_start_token_id=0
    )
    example = {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}
    return transformers.T5ForConditionalGeneration(config), example, {"input_ids": IDS}


def whisper() -> tuple[nn.Module, Inputs, Inputs]:
    config = transformers.WhisperConfig(
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=64, num_mel_bins=16,
        max_source_positions=50, max_target_positions=40, **SPECIAL,
    )  # fmt: skip
    example = {"input_features": SOUND, "decoder_input_ids": IDS}
    return transformers.WhisperForConditionalGeneration(config), example, {"input_features": SOUND}


def generate(model: Any, inputs: Inputs, **options: Any) -> Any:
    lengths = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    return model.generate(**inputs, **lengths, return_dict_in_generate=True, output_logits=True, **options)


@pytest.mark.parametrize("make", [gpt2, llama, t5, whisper])
def test_a_cache_changes_nothing_and_warns_of_nothing(
    make: Callable[[], tuple[nn.Module, Inputs, Inputs]],
) -> None:
    torch.manual_seed(0)
    model, example, inputs = make()
    expected = generate(model.eval(), inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantcfgWarning)
        prepared = qc.prepare(model, {"": qc.get_default_qconfig()}, example_inputs=example)
        with qc.calibrating(prepared):
            generate(prepared, inputs)
        qc.set_fake_quantize(prepared, qc.FakeQuantState.VALIDATION)
        cached, anew = generate(prepared, inputs), generate(prepared, inputs, use_cache=False)

    torch.testing.assert_close(cached.logits, anew.logits, rtol=1e-3, atol=1e-3)
    first, wanted = (result.logits[0].flatten() for result in (cached, expected))
    assert torch.cosine_similarity(first, wanted, dim=0) > 0.99
    assert not torch.equal(first, wanted)
