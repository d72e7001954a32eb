"""Defaults of each family's config.json, and differences between families that no key states."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Family:
    """``defaults``: transformers' defaults of missing keys; other keys are not read. ``also``: other
    names of keys. Biases: always, never, or the key of the config that states it."""

    defaults: Mapping[str, Any]
    also: Mapping[str, str] = field(default_factory=dict)
    qkv_bias: bool | str = False
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    query_key_norm: Literal["none", "head", "width"] = "none"


_EVERYWHERE: Mapping[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}
_QWEN: Mapping[str, Any] = {
    **_EVERYWHERE,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_QWEN_EXPERTS: Mapping[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        defaults={
            **_EVERYWHERE,
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "attention_bias": False,
            "mlp_bias": False,
        },
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
    ),
    "mistral": Family(
        defaults={
            **_EVERYWHERE,
            "vocab_size": 32000,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
    ),
    "qwen2": Family(defaults=_QWEN, qkv_bias=True),
    "qwen3": Family(
        defaults={**_QWEN, "head_dim": 128, "attention_bias": False},
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        query_key_norm="head",
    ),
    "gpt2": Family(
        defaults={
            "vocab_size": 50257,
            "n_positions": 1024,
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_inner": None,
            "attn_pdrop": 0.1,
            "tie_word_embeddings": True,
        },
        also={
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
    ),
    "mixtral": Family(
        defaults={
            **_EVERYWHERE,
            "vocab_size": 32000,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "sliding_window": None,
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
        },
    ),
    "olmoe": Family(
        defaults={
            **_EVERYWHERE,
            "vocab_size": 50304,
            "hidden_size": 2048,
            "intermediate_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "attention_bias": False,
            "num_experts_per_tok": 8,
            "num_experts": 64,
        },
        also={"num_local_experts": "num_experts"},
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        query_key_norm="width",
    ),
    "qwen2_moe": Family(
        defaults={
            **_QWEN,
            **_QWEN_EXPERTS,
            "intermediate_size": 5632,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "qkv_bias": True,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts_per_tok": 4,
            "num_experts": 60,
        },
        qkv_bias="qkv_bias",
    ),
    "qwen3_moe": Family(
        defaults={
            **{key: _QWEN[key] for key in _QWEN if key not in ("max_window_layers", "layer_types")},
            **_QWEN_EXPERTS,
            "intermediate_size": 6144,
            "num_key_value_heads": 4,
            "attention_bias": False,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
            "num_experts": 128,
        },
        also={"num_local_experts": "num_experts"},
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        query_key_norm="head",
    ),
    "deepseek_v3": Family(
        defaults={
            "vocab_size": 129280,
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "first_k_dense_replace": 3,
            "moe_intermediate_size": 2048,
            "n_shared_experts": 1,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
        },
        also={"num_local_experts": "n_routed_experts"},
    ),
}
