"""Tiny random models of the causal architectures that the installed transformers knows."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 384
_LARGEST = 20_000_000
_WINDOW = 64
# a size, and what configurations call it
_SIZES: list[tuple[int, str]] = [
    (VOCABULARY, "vocab_size vocab_size_per_layer_input"),
    (32, "hidden_size n_embd d_model d_embed embedding_size word_embed_proj_dim lru_width"),
    (48, "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner d_ff dim_ff"),
    (2, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers"),
    (4, "num_attention_heads n_head n_heads num_heads decoder_attention_heads"),
    (4, "encoder_attention_heads time_step_rank linear_num_value_heads"),
    (2, "num_key_value_heads num_experts_per_tok linear_num_key_heads mamba_expand"),
    (8, "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim rotary_dim linear_key_head_dim"),
    (8, "linear_value_head_dim mamba_d_state state_size hidden_size_per_layer_input"),
    (8, "mamba_n_heads mamba_d_head query_pre_attn_scalar"),
    (16, "kv_lora_rank q_lora_rank qk_head_dim"),
    (24, "moe_intermediate_size shared_expert_intermediate_size"),
    (4, "num_experts num_local_experts n_routed_experts"),
    (1, "n_group topk_group n_shared_experts first_k_dense_replace mamba_n_groups"),
    (0, "num_kv_shared_layers moe_layer_start_index pad_token_id"),
    (1, "bos_token_id"),
    (2, "eos_token_id"),
    (1024, "max_position_embeddings n_positions max_seq_len n_ctx"),
    (_WINDOW, "sliding_window attention_window_size attention_chunk_size"),
]
_ALL_HEADS = {"num_key_value_heads": 4}
_ALTERNATING = ["linear_attention", "full_attention"] * 2
_LINEAR = {"num_hidden_layers": 4, "layer_types": _ALTERNATING}
_CONVOLUTIONS = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
_ZAMBA = {
    "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2,
    "attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4,
}  # fmt: skip
# what some architectures need beside; None leaves a size at the architecture's own
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "longcat_flash",
         "minicpm3", "youtu", "axk1", "axk2", "glm_moe_dsa"),
        _ALL_HEADS,
    ),
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "minimax"), _LINEAR
    ),
    **dict.fromkeys(("lfm2", "lfm2_moe"), _CONVOLUTIONS),
    "kimi_linear": {**_LINEAR, "num_key_value_heads": 4},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "prophetnet": {
        "num_hidden_layers": None, "num_encoder_layers": 2, "num_decoder_layers": 2,
        "is_decoder": True,
    },
    "reformer": {
        "is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"],
        "num_buckets": 8, "hash_seed": 1,
    },
    "xlnet": {"max_position_embeddings": None},
    "zaya": {"num_experts_per_tok": 1},
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 64},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "bamba": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"num_hidden_layers": 4, "layer_types": ["mamba", "attention"] * 2},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "nemotron_h": {"num_hidden_layers": 4},
    "bailing_hybrid": {"num_hidden_layers": 4},
    "recurrent_gemma": {"num_hidden_layers": 6},
    "zamba": {**_ZAMBA, "n_mamba_heads": 2},
    "zamba2": {
        **_ZAMBA, "layer_types": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3],
        "mamba_headdim": 8, "n_mamba_heads": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": _WINDOW},
    "xlstm": {"v_head_dim": None, "head_dim": None, "qk_head_dim": None},
    "gemma4_text": {"head_dim": None, "num_key_value_heads": None, "num_attention_heads": None},
}  # fmt: skip
# a Phi-3 whose rotary factors switch at a length, and a Llama whose frequencies grow from one
SWITCH = 150
LONGROPE = {
    "max_position_embeddings": 1024,
    "original_max_position_embeddings": SWITCH,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
        "short_factor": [1.0, 1.1, 1.3, 1.4], "long_factor": [2.0, 5.0, 20.0, 50.0],
        "original_max_position_embeddings": SWITCH,
    },
}  # fmt: skip
DYNAMIC = {
    "max_position_embeddings": SWITCH,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}


def causal_kinds() -> list[str]:
    """Return the architectures that transformers loads as causal language models."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_model(kind: str, *, spread: float = 0.3, seed: int = 0, **changes: Any) -> Any:
    """Return a random model of ``kind`` in evaluation mode and float32.

    A random model with a wide spread of weights exaggerates an error, not whether there is one.

    Raises
    ------
    ValueError
        When it would not be tiny.
    """
    config = _config(kind, changes)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    size = sum(weight.numel() for weight in empty.parameters())
    if size > _LARGEST:
        raise ValueError(f"{kind} has {size:,} parameters and does not get smaller")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval().float()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, spread)
    return model


def _config(kind: str, changes: dict[str, Any]) -> Any:
    kind_of_config = CONFIG_MAPPING[kind]
    given = {**_small(kind_of_config()), "dtype": "float32", **_OWN.get(kind, {}), **changes}
    return kind_of_config(**{name: value for name, value in given.items() if value is not None})


def _small(usual: Any) -> dict[str, Any]:
    """Return the sizes of a configuration, and of those that it holds (text, vision, audio)."""
    sizes = {name: size for size, names in _SIZES for name in names.split() if _has(usual, name)}
    inner = {name: getattr(usual, name, None) for name in type(usual).sub_configs}
    return sizes | {name: _small(one) for name, one in inner.items() if hasattr(one, "sub_configs")}


def _has(config: Any, name: str) -> bool:
    try:
        return not callable(getattr(config, name))
    except Exception:
        return False
