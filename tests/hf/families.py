"""Tiny models of ten families of transformers."""

import copy
import inspect
from typing import Any

import torch
import transformers

VOCABULARY = 97
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
#: Sliding windows are shorter than the texts of the tests.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 6},
    "olmo2": {},
    "gemma2": {"head_dim": 16, "sliding_window": 6},
    "phi3": {"sliding_window": 6},
    "smollm3": {"no_rope_layer_interval": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
}
#: Families with something else: positions by kind of layer, sinks, keys wider than values, biases.
OTHERS: dict[str, dict[str, Any]] = {
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention"] * 4},
    "glm4": {"head_dim": 8},
    "cohere2": {"sliding_window": 6},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "head_dim": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "gpt_oss": {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 6,
    },
    "starcoder2": {},
}


def tiny(family: str, **more: Any) -> Any:
    """A model with random weights of a scale at which its layers matter."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        family, **{**_SHAPE, **(FAMILIES | OTHERS).get(family, {}), **more}
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def with_original(family: str, **more: Any) -> tuple[Any, Any]:
    model = tiny(family, **more)
    return copy.deepcopy(model), model


def given(model: Any, cache: Any) -> dict[str, Any]:
    """The argument that gives ``model`` a cache; transformers 5.24 renamed it."""
    names = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache}


def cache_of(outputs: Any) -> Any:
    return outputs["cache"] if "cache" in outputs else outputs["past_key_values"]
