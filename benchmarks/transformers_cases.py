"""Hugging Face architectures small enough to build without a download, and inputs with padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

Inputs = Callable[[], dict[str, Any]]
_IDS = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))
_MASK = torch.ones(2, 12, dtype=torch.long)
_MASK[1, 7:] = 0
_TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 100, "max_position_embeddings": 64,
}  # fmt: skip
_VISION = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2,
           "num_attention_heads": 4, "intermediate_size": 64}  # fmt: skip
_SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 100,
}  # fmt: skip


def _text() -> dict[str, Any]:
    return {"input_ids": _IDS, "attention_mask": _MASK}


def _image(size: int = 32) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, size, size)}


def _decoded() -> dict[str, Any]:
    return _text() | {"decoder_input_ids": _IDS}


def _audio() -> dict[str, Any]:
    return {"input_features": torch.randn(2, 80, 40), "decoder_input_ids": _IDS}


# Model class, config class, inputs, and the parts of the config that make it small.
_CASES: list[tuple[str, str, Inputs, dict[str, Any]]] = [
    ("BertModel", "BertConfig", _text, _TEXT),
    ("RobertaModel", "RobertaConfig", _text, _TEXT),
    ("DistilBertModel", "DistilBertConfig", _text,
     {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 100}),
    ("AlbertModel", "AlbertConfig", _text, _TEXT | {"embedding_size": 16}),
    ("ElectraModel", "ElectraConfig", _text, _TEXT | {"embedding_size": 16}),
    ("GPT2LMHeadModel", "GPT2Config", _text,
     {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64}),
    ("OPTModel", "OPTConfig", _text,
     {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "vocab_size": 100,
      "word_embed_proj_dim": 32, "max_position_embeddings": 64}),
    ("LlamaForCausalLM", "LlamaConfig", _text, _TEXT | {"num_key_value_heads": 2}),
    ("Qwen2ForCausalLM", "Qwen2Config", _text, _TEXT | {"num_key_value_heads": 2}),
    ("MistralForCausalLM", "MistralConfig", _text, _TEXT | {"num_key_value_heads": 2}),
    ("T5ForConditionalGeneration", "T5Config", _decoded,
     {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}),
    ("BartModel", "BartConfig", _text, _SEQ2SEQ | {"max_position_embeddings": 64}),
    ("WhisperModel", "WhisperConfig", _audio,
     _SEQ2SEQ | {"max_source_positions": 20, "max_target_positions": 64, "pad_token_id": 0, "bos_token_id": 1,
                 "eos_token_id": 2, "decoder_start_token_id": 1}),
    ("Wav2Vec2Model", "Wav2Vec2Config", lambda: {"input_values": torch.randn(2, 4000)},
     {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
      "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 16,
      "num_conv_pos_embedding_groups": 4}),
    ("ViTModel", "ViTConfig", _image, _VISION),
    ("DeiTModel", "DeiTConfig", _image, _VISION),
    ("BeitModel", "BeitConfig", _image, _VISION),
    ("Dinov2Model", "Dinov2Config", _image, _VISION),
    ("SwinModel", "SwinConfig", _image,
     {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
      "window_size": 4}),
    ("SegformerForSemanticSegmentation", "SegformerConfig", lambda: _image(64),
     {"hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 32, "num_attention_heads": [1, 2, 2, 4],
      "depths": [1, 1, 1, 1]}),
    ("CLIPModel", "CLIPConfig", lambda: _text() | _image(),
     {"text_config": _TEXT, "vision_config": _VISION}),
]  # fmt: skip


def cases() -> Iterator[tuple[str, Callable[[], tuple[nn.Module, dict[str, Any]]]]]:
    """Each architecture, once with fused attention and once spelled out."""
    import transformers

    for attention in ("sdpa", "eager"):
        for model, config, inputs, options in _CASES:
            if hasattr(transformers, model):
                yield (
                    f"transformers/{model}/{attention}",
                    _maker(transformers, (model, config), options, inputs, attention),
                )


def _maker(
    transformers: Any, names: tuple[str, str], options: dict[str, Any], inputs: Inputs, attention: str
) -> Callable[[], tuple[nn.Module, dict[str, Any]]]:
    def make() -> tuple[nn.Module, dict[str, Any]]:
        config = getattr(transformers, names[1])(**options)
        config._attn_implementation = attention
        model: nn.Module = getattr(transformers, names[0])(config)
        return model, inputs()

    return make
