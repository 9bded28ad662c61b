"""Hugging Face architectures small enough to build without a download, and inputs with padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

Options = dict[str, Any]
Inputs = Callable[[], dict[str, Any]]
_IDS = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))
_MASK = torch.ones(2, 12, dtype=torch.long)
_MASK[1, 7:] = 0

# What makes a model small, under every name that configs have for it.
_SMALL: Options = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "embed_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers"), 2),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_heads", "n_head"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "hidden_dim", "mlp_dim"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), 64),
    **dict.fromkeys(("num_key_value_heads", "type_vocab_size"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "patch_size"), 8),
    "vocab_size": 100, "image_size": 32, "embedding_size": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
_FOUR_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_CONVOLUTIONS = _FOUR_STAGES | {"embedding_size": 8}
_PYRAMID = _FOUR_STAGES | {"num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 32}
_WINDOWS = {"patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_WAVES = {
    "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "do_stable_layer_norm": False,
}  # fmt: skip
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
_DETECTOR = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "num_queries": 5}
_RESNET = _CONVOLUTIONS | {
    "model_type": "resnet", "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
_SWIN = {
    "model_type": "swin", "image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2], "window_size": 2, "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
_DETR = {
    "model_type": "detr", "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 5,
}  # fmt: skip


def _ids() -> dict[str, Any]:
    return {"input_ids": _IDS}


def _text() -> dict[str, Any]:
    return {"input_ids": _IDS, "attention_mask": _MASK}


def _decoded() -> dict[str, Any]:
    return _text() | {"decoder_input_ids": _IDS}


def _boxed() -> dict[str, Any]:
    corners = torch.randint(0, 500, (2, 12, 2))
    return _text() | {"bbox": torch.cat([corners, corners + 100], dim=-1)}


def _image() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def _large() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 64, 64)}


def _video() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 2, 3, 32, 32)}


def _both() -> dict[str, Any]:
    return _text() | _image()


def _shown(**tensors: tuple[int, ...]) -> Inputs:
    return lambda: _text() | {name: torch.rand(*shape) for name, shape in tensors.items()}


def _wave() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 4000)}


def _heard() -> dict[str, Any]:
    return _wave() | {"decoder_input_ids": _IDS}


def _spectrum(*shape: int) -> Inputs:
    return lambda: {"input_features": torch.randn(2, *shape), "decoder_input_ids": _IDS}


def _series() -> dict[str, Any]:
    past = {"past_values": (2, 19), "past_time_features": (2, 19, 1), "past_observed_mask": (2, 19)}
    future = {"future_values": (2, 4), "future_time_features": (2, 4, 1)}
    return {name: torch.rand(*shape).round(decimals=1) for name, shape in (past | future).items()}


def _returns() -> dict[str, Any]:
    sizes = {"states": 17, "actions": 4, "rewards": 1, "returns_to_go": 1}
    tensors = {name: torch.randn(2, 6, size) for name, size in sizes.items()}
    return tensors | {"timesteps": torch.arange(6).repeat(2, 1), "attention_mask": torch.ones(2, 6)}


def _each(names: str, options: Options | None = None) -> dict[str, Options]:
    return {name: options or {} for name in names.split()}


# By what they are given, with the parts of their config that make them small beside `_SMALL`.
_MODELS: list[tuple[Inputs, dict[str, Options]]] = [
    (_text, {
        **_each("BertModel RobertaModel XLMRobertaModel DistilBertModel AlbertModel"),
        **_each("ElectraModel DebertaModel DebertaV2Model MPNetModel ModernBertModel"),
        **_each("RoFormerModel XLNetModel EsmModel CanineModel TapasModel"),
        "SplinterModel": {},
        "MobileBertModel": {"intra_bottleneck_size": 16, "true_hidden_size": 16},
        "LongformerModel": {"attention_window": 4},
        "BigBirdModel": {"block_size": 2, "num_random_blocks": 1},
        "FunnelModel": {"block_sizes": [1, 1], "d_inner": 64, "d_head": 8},
        "NystromformerModel": {"num_landmarks": 12, "segment_means_seq_len": 12},
        "SqueezeBertModel": {"embedding_size": 32},
    }),
    (_text, {
        **_each("GPT2LMHeadModel OPTModel LlamaForCausalLM MistralForCausalLM"),
        **_each("Qwen2ForCausalLM Qwen3ForCausalLM GemmaForCausalLM Gemma2ForCausalLM"),
        **_each("Gemma3ForCausalLM PhiForCausalLM Phi3ForCausalLM FalconForCausalLM"),
        **_each("BloomForCausalLM GPTNeoXForCausalLM StableLmForCausalLM"),
        **_each("CohereForCausalLM OlmoForCausalLM TrOCRForCausalLM"),
        **_each("MixtralForCausalLM Qwen2MoeForCausalLM GptOssForCausalLM", _EXPERTS),
        "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
        "GPTJForCausalLM": {"rotary_dim": 4},
        "DeepseekV3ForCausalLM": _EXPERTS | _LATENT | {
            "v_head_dim": 8, "first_k_dense_replace": 1, "num_key_value_heads": 4,
        },
        "JambaForCausalLM": _EXPERTS | {
            "use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4,
        },
        "RecurrentGemmaForCausalLM": {"lru_width": 32, "num_hidden_layers": 3, "attention_window_size": 8},
    }),
    (_ids, {
        "FNetModel": {},
        "MambaForCausalLM": {"state_size": 4},
        "Mamba2ForCausalLM": {"num_heads": 8, "state_size": 8, "n_groups": 1, "chunk_size": 4},
        "RwkvModel": {"attention_hidden_size": 32},
    }),
    (_decoded, {
        **_each("T5ForConditionalGeneration MT5Model LongT5Model UMT5Model"),
        **_each("BartModel MBartModel PegasusModel MarianModel M2M100Model"),
        "LEDModel": {"attention_window": 4},
        "SwitchTransformersModel": _EXPERTS | {
            "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
        },
        "ProphetNetModel": {"num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4},
        "BigBirdPegasusModel": {"block_size": 2},
    }),
    (_wave, {
        **_each("Wav2Vec2Model HubertModel WavLMModel UniSpeechModel SEWModel", _WAVES),
        "Data2VecAudioModel": _WAVES | {"conv_pos_kernel_size": 3},
    }),
    (_heard, {
        "SpeechT5ForSpeechToText": _WAVES,
        "MoonshineModel": {
            "encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1,
            "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
        },
    }),
    (_spectrum(80, 40), {"WhisperModel": {"max_source_positions": 20}}),
    (_spectrum(40, 80), {"Speech2TextModel": {"max_source_positions": 64}}),
    (lambda: {"input_values": torch.randn(2, 64, 32)}, {
        "ASTModel": {"max_length": 64, "num_mel_bins": 32, "frequency_stride": 8, "time_stride": 8},
    }),
    (lambda: {"input_values": torch.randn(1, 1, 640)}, {
        "EncodecModel": {"num_filters": 4, "codebook_size": 16, "hidden_size": 16, "num_lstm_layers": 1},
    }),
    (_image, {
        **_each("ViTModel DeiTModel Dinov2Model ViTMAEModel"),
        **_each("SwinModel Swinv2Model DonutSwinModel", _WINDOWS),
        "BeitModel": {"use_relative_position_bias": True},
        "Swin2SRForImageSuperResolution": _WINDOWS | {"patch_size": 1},
        "FocalNetModel": {
            "embed_dim": 16, "depths": [1, 1], "hidden_sizes": [16, 32], "patch_size": 4,
            "focal_levels": [2, 2], "focal_windows": [3, 3],
        },
        "DPTForDepthEstimation": {
            "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "fusion_hidden_size": 8,
            "neck_hidden_sizes": [8, 8, 8, 8], "is_hybrid": False,
        },
        "YolosForObjectDetection": {"image_size": [32, 32], "num_detection_tokens": 4},
    }),
    (_large, {
        **_each("ConvNextModel ConvNextV2Model ResNetModel", _CONVOLUTIONS),
        **_each("SegformerForSemanticSegmentation GLPNForDepthEstimation", _PYRAMID),
        "MobileNetV2Model": {},
        "PoolFormerModel": _FOUR_STAGES,
        "RegNetModel": _CONVOLUTIONS | {"groups_width": 8},
        "BitModel": _CONVOLUTIONS | {"num_groups": 4},
        "PvtModel": _PYRAMID | {"image_size": 64, "patch_sizes": [4, 2, 2, 2]},
        "MobileViTModel": {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 32]},
        "EfficientNetModel": {"width_coefficient": 0.25, "hidden_dim": 320},
        "LevitModel": {
            "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
            "key_dim": [8, 8, 8], "image_size": 64, "patch_size": 16,
        },
        "HieraModel": {
            "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "image_size": [64, 64],
            "patch_size": [7, 7],
        },
        "UperNetForSemanticSegmentation": {
            "hidden_size": 32, "auxiliary_in_channels": 24, "auxiliary_channels": 16,
            "backbone_config": _RESNET | {"out_features": ["stage1", "stage2", "stage3", "stage4"]},
        },
        **dict.fromkeys(
            ("DetrForObjectDetection", "ConditionalDetrForObjectDetection", "TableTransformerModel"),
            _DETECTOR | {"backbone_config": _RESNET},
        ),
        "DeformableDetrForObjectDetection": _DETECTOR | {"num_feature_levels": 3, "backbone_config": _RESNET},
        "MaskFormerForInstanceSegmentation": {
            "fpn_feature_size": 32, "mask_feature_size": 32, "backbone_config": _SWIN,
            "decoder_config": _DETR,
        },
        "Mask2FormerForUniversalSegmentation": {
            "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32,
            "dim_feedforward": 32, "encoder_layers": 1, "num_queries": 5, "backbone_config": _SWIN,
        },
        "SamModel": {
            "vision_config": {"image_size": 64, "output_channels": 32, "num_pos_feats": 16, "window_size": 2},
            "prompt_encoder_config": {"image_size": 64, "patch_size": 8, "image_embedding_size": 8},
            "mask_decoder_config": {"iou_head_hidden_dim": 32},
        },
        "SuperPointForKeypointDetection": {
            "encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16, "keypoint_decoder_dim": 65,
            "descriptor_decoder_dim": 16,
        },
    }),
    (_both, {
        **_each("CLIPModel SiglipModel"),
        **_each("AltCLIPModel CLIPSegModel ViltModel FlavaModel OwlViTModel"),
        **_each("BlipModel BlipForConditionalGeneration", {"vision_config": {"initializer_range": 0.02}}),
        "GroupViTModel": {
            "vision_config": {
                "depths": [1, 1, 0], "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 0],
            },
        },
    }),
    (_boxed, {
        "LayoutLMModel": {},
        "LayoutLMv3Model": {
            "coordinate_size": 6, "shape_size": 4, "input_size": 32, "has_spatial_attention_bias": True,
            "max_2d_position_embeddings": 1024,
        },
    }),
    (_shown(visual_embeds=(2, 4, 16)), {"VisualBertModel": {"visual_embedding_dim": 16}}),
    (_shown(visual_feats=(2, 4, 16), visual_pos=(2, 4, 4)), {
        "LxmertModel": {"visual_feat_dim": 16, "l_layers": 1, "x_layers": 1, "r_layers": 1},
    }),
    (_video, {
        **_each("TimesformerModel VideoMAEModel", {"num_frames": 2}),
        "VivitModel": {"num_frames": 2, "tubelet_size": [2, 8, 8]},
    }),
    (lambda: {"past_values": torch.randn(2, 32, 1)}, {
        "PatchTSTModel": {"patch_length": 4, "patch_stride": 4},
    }),
    (_series, {
        "TimeSeriesTransformerModel": {
            "prediction_length": 4, "context_length": 12, "num_time_features": 1,
        },
    }),
    (_returns, {"DecisionTransformerModel": {}}),
    (lambda: {"inputs": torch.randn(2, 12, 16)}, {
        "PerceiverModel": {"d_model": 16, "d_latents": 32, "num_latents": 4, "num_self_attends_per_block": 1},
    }),
]  # fmt: skip


def cases() -> Iterator[tuple[str, Callable[[], tuple[nn.Module, dict[str, Any]]]]]:
    """Each architecture, once with fused attention and once spelled out."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    for attention in ("sdpa", "eager"):
        for inputs, models in _MODELS:
            for name, options in models.items():
                if hasattr(transformers, name):
                    make = _maker(getattr(transformers, name), options, inputs, attention)
                    yield f"transformers/{name}/{attention}", make


def _maker(
    model: Any, options: Options, inputs: Inputs, attention: str
) -> Callable[[], tuple[nn.Module, dict[str, Any]]]:
    def make() -> tuple[nn.Module, dict[str, Any]]:
        config = model.config_class(**_small(model.config_class().to_dict(), options))
        config._attn_implementation = attention if _supports(model, attention) else "eager"
        if getattr(config, "backbone_config", None) is not None:
            config.backbone_config._attn_implementation = "eager"
        return model(config), inputs()

    return make


def _small(defaults: Options, options: Options) -> Options:
    """The keys of a config, and of the configs within it, that make the model small."""
    made = {name: value for name, value in _SMALL.items() if name in defaults}
    for name, value in defaults.items():
        if name.endswith("_config") and isinstance(value, dict):
            own = options.get(name, {})
            kind = {"model_type": value["model_type"]} if value.get("model_type") else {}
            made[name] = kind | (own if name in _WHOLE else _small(value, own))
    return made | {name: value for name, value in options.items() if not isinstance(made.get(name), dict)}


_WHOLE = ("backbone_config", "decoder_config")
"""Configs that options give whole or not at all."""


def _supports(model: Any, attention: str) -> bool:
    return attention == "eager" or bool(getattr(model, "_supports_sdpa", False))
