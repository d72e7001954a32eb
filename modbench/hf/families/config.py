"""Reads a config.json by its family's keys: renames, defaults and type checks; `Reading`,
what the formulas of papers use. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from modbench.errors import UserError, known_names
from modbench.typed import built

Size = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]

#: By family, the keys of its config.json that are read, with transformers' defaults; also what no key
#: states: biases that are always there, and the norms of queries and keys.
FAMILIES: Mapping[str, Mapping[str, Any]] = json.loads(
    Path(__file__).with_name("defaults.json").read_bytes()
)
#: Other names of keys.
_ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "attn_pdrop": "attention_dropout",
    "num_local_experts": "num_experts",
    "n_routed_experts": "num_experts",
}


@dataclass(frozen=True, kw_only=True)
class FamilyConfig:
    """A config.json with its family's defaults; None and False where the family has no such key."""

    model_type: str
    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Size
    intermediate_size: Size | None
    tie_word_embeddings: bool
    max_position_embeddings: Size | None = None  #: entries of a learned position embedding
    mlp_bias: bool = False

    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    attention_dropout: float | None
    qkv_bias: bool | None = None  #: by default `attention_bias`
    attention_bias: bool = False
    query_key_norm: Literal["head", "width"] | None = None
    kv_lora_rank: Size | None = None
    q_lora_rank: Size | None = None
    qk_nope_head_dim: Size = 1
    qk_rope_head_dim: Size = 1
    v_head_dim: Size = 1
    sliding_window: Size | None = None
    use_sliding_window: bool = True
    max_window_layers: Count | None = None
    layer_types: tuple[str, ...] | None = None

    num_experts: Count = 0
    num_experts_per_tok: Size = 1
    moe_intermediate_size: Size | None = None
    n_shared_experts: Count | None = None
    shared_expert_intermediate_size: Size | None = None
    first_k_dense_replace: Count = 0
    decoder_sparse_step: Size = 1
    mlp_only_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_experts and self.num_experts_per_tok > self.num_experts:
            raise UserError(
                f"num_experts_per_tok is {self.num_experts_per_tok}; there are {self.num_experts} "
                "experts to choose from"
            )
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise UserError(
                f"layer_types names {len(self.layer_types)} layers of {self.num_hidden_layers}; "
                "name each"
            )
        heads, key_heads = self.num_attention_heads, self.num_key_value_heads or 1
        if heads % key_heads:
            raise UserError(
                f"num_attention_heads is {heads}; num_key_value_heads, {key_heads}, must divide it"
            )
        # Llama's config insists on it, even if it gives the width of heads.
        if self.hidden_size % heads and (self.head_dim is None or self.model_type == "llama"):
            raise UserError(
                f"hidden_size is {self.hidden_size}; num_attention_heads, {heads}, must divide it"
            )


def read_config(config: Mapping[str, Any]) -> FamilyConfig:
    """Read the dict of a config.json; keys that its family does not have are ignored. Raise a
    `UserError` for an unknown family or an impossible value."""
    name: Any = config.get("model_type")
    if name not in FAMILIES:
        raise UserError(
            f"model_type '{name}' is no causal language model with a closed form; "
            f"{known_names(name, FAMILIES)}"
        )
    read = {_ALIASES.get(key, key): value for key, value in FAMILIES[name].items()}
    given = {_ALIASES.get(key, key): value for key, value in config.items()}
    read |= {key: value for key, value in given.items() if key in read}
    return built("config", {"model_type": name, **read}, FamilyConfig)


def load_config(path: str | Path) -> dict[str, Any]:
    """Load a model's config.json from the file or its folder. Raise a `UserError` if the file can't be
    read or is not a JSON object."""
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"config {path} can't be read ({error}); give a model's config.json") from error
    if not isinstance(config, dict):
        raise UserError(f"config {path} holds no JSON object; give a model's config.json")
    return config


def stated_length(config: Mapping[str, Any]) -> int | None:
    """Return the largest input length that a config.json states; None if it states none."""
    names = ("n_positions", "max_position_embeddings", "n_ctx")
    stated = (config.get(name) for name in names)
    return next((length for length in stated if isinstance(length, int) and length > 0), None)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Sizes of a model that the papers' formulas use. Vectors (norms, biases) are no operand of a
    matmul, and stand apart from the matrices."""

    layers: int
    heads: int
    attention_width: int  #: heads * head width, of one layer
    attention_parameters: int  #: matrices of attention, all layers
    feed_forward_parameters: int  #: matrices of a token's MLPs or experts, all layers
    router_parameters: int  #: matrices of a token's routers and predictors, all layers
    head_parameters: int  #: the matrix behind the logits, tied or not
    vector_parameters: int  #: norms and biases, all layers and before the head
    parameters: int  #: all, vectors included, a tied head once
    active_parameters: int  #: those that process a token routed everywhere
