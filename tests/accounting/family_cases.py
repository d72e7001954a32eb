"""Small configs of every family, awkward on purpose: odd vocabularies, grouped heads, heads whose width
isn't hidden_size / heads, windows, dense layers between sparse ones."""

from typing import Any

Config = dict[str, Any]

_SMALL: Config = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_EXPERTS: Config = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
_GPT2: Config = {
    "model_type": "gpt2",
    "vocab_size": 101,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}
_DEEPSEEK: Config = {
    **_SMALL,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 6,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 3,
    "kv_lora_rank": 16,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
}

CONFIGS: dict[str, Config] = {
    "llama": {**_SMALL, "model_type": "llama", "head_dim": 10, "tie_word_embeddings": True},
    "llama-biases": {**_SMALL, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {**_SMALL, "model_type": "mistral", "head_dim": 16, "sliding_window": 17},
    "mistral-no-window": {**_SMALL, "model_type": "mistral", "sliding_window": None},
    "qwen2": {**_SMALL, "model_type": "qwen2"},
    "qwen2-window": {
        **_SMALL,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 17,
        "max_window_layers": 1,
    },
    "qwen3": {**_SMALL, "model_type": "qwen3", "head_dim": 16, "attention_bias": True},
    "qwen3-layer-types": {
        **_SMALL,
        "model_type": "qwen3",
        "num_key_value_heads": None,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gemma": {**_SMALL, "model_type": "gemma", "head_dim": 16},
    "phi3": {**_SMALL, "model_type": "phi3"},
    "phi3-head-dim": {**_SMALL, "model_type": "phi3", "head_dim": 16},
    "phi3-window": {**_SMALL, "model_type": "phi3", "sliding_window": 17},
    "gpt2": _GPT2,
    "gpt2-untied": {**_GPT2, "n_inner": 100, "attn_pdrop": 0.0, "tie_word_embeddings": False},
    "mixtral": {**_SMALL, "model_type": "mixtral", "num_local_experts": 5, "head_dim": 16},
    "mixtral-window": {
        **_SMALL,
        "model_type": "mixtral",
        "num_local_experts": 3,
        "num_experts_per_tok": 1,
        "sliding_window": 9,
    },
    "olmoe": {**_SMALL, "model_type": "olmoe", "num_experts": 5, "num_experts_per_tok": 3},
    "qwen2_moe": {
        **_SMALL,
        **_EXPERTS,
        "model_type": "qwen2_moe",
        "shared_expert_intermediate_size": 40,
        "decoder_sparse_step": 2,
    },
    "qwen2_moe-window": {
        **_SMALL,
        **_EXPERTS,
        "model_type": "qwen2_moe",
        "shared_expert_intermediate_size": 40,
        "qkv_bias": False,
        "mlp_only_layers": [1],
        "use_sliding_window": True,
        "sliding_window": 17,
    },
    "qwen3_moe": {**_SMALL, **_EXPERTS, "model_type": "qwen3_moe", "head_dim": 16},
    "qwen3_moe-window": {
        **_SMALL,
        **_EXPERTS,
        "model_type": "qwen3_moe",
        "attention_bias": True,
        "mlp_only_layers": [0],
        "use_sliding_window": True,
        "sliding_window": 63,
    },
    "qwen3_moe-no-experts": {
        **_SMALL,
        "model_type": "qwen3_moe",
        "num_experts": 0,
        "num_experts_per_tok": 8,
    },
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v3-plain-query": {
        **_DEEPSEEK,
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "first_k_dense_replace": 0,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
}

#: Published sizes, as far as they differ from their family's defaults.
PUBLISHED: dict[str, Config] = {
    "Llama-3-8B": {
        "model_type": "llama",
        "vocab_size": 128256,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
    },
    "Mixtral-8x7B": {"model_type": "mixtral"},
    "DeepSeek-V3": {"model_type": "deepseek_v3"},
    "GPT-2": {"model_type": "gpt2"},
}
