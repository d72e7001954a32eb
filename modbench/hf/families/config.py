"""Reads a config.json by its family's keys: renames, defaults and type checks; `Reading`,
what the formulas of papers use. No torch."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from modbench.errors import UserError
from modbench.typed import built

Size = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]

#: By family: ``keys`` of its config.json that are read, with transformers' defaults; other ``names``
#: that transformers has for them; and, ``fixed``, what no key states, such as norms of queries and keys.
FAMILIES: Mapping[str, Mapping[str, Mapping[str, Any]]] = json.loads(
    Path(__file__).with_name("defaults.json").read_bytes()
)
#: Fields of `FamilyConfig` that a key fills by another name.
_FIELDS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "attn_pdrop": "attention_dropout",
    "num_local_experts": "num_experts",
    "n_routed_experts": "num_experts",
}
#: Keys that transformers heeds in any family, read or not. Each must be absent or off, windows null.
_NOT_COVERED = (
    "use_bidirectional_attention",
    "is_encoder_decoder",
    "add_cross_attention",
    "per_layer_config",
    "num_kv_shared_layers",
)
_WINDOWS = ("sliding_window", "attention_chunk_size")
#: Keys without an effect on FLOPs: of every config of transformers, of generation, and of what is no
#: matmul.
_WITHOUT_EFFECT = re.compile(
    "_.*|architectures|auto_map|model_type|.*dtype|.*_version|tokenizer_class|"
    ".*_token_ids?|prefix|.*_params|torchscript|use_bfloat16|use_cache|tie_encoder_decoder|"
    "tf_legacy_loss|pruned_heads|cross_attention_hidden_size|is_decoder|chunk_size_feed_forward|"
    "gradient_checkpointing|return_dict|output_.*|problem_type|finetuning_task|num_labels|id2label|"
    "label2id|quantization_config|compression_config|unsloth_.*|use_mrope|"
    "max_length|min_length|do_sample|early_stopping|.*num_beam.*|diversity_penalty|temperature|top_[kp]|"
    "typical_p|.*_penalty|.*no_repeat_ngram_size|bad_words_ids|num_return_sequences|suppress_tokens|"
    "begin_suppress_tokens|return_dict_in_generate|remove_invalid_values|(epsilon|eta)_cutoff|"
    ".*assistant_.*|target_lookbehind|"
    "(hidden|resid|embd|embed|classifier|attn|summary_first)_p?d?rop(out)?|.*_eps|.*_epsilon|"
    "hidden_act(ivation)?|activation_function|initializer_.*|rope_.*|.*_rotary_.*|pretraining_tp|"
    "(original_)?max_position_embeddings|n_ctx|summary_.*|scale_attn_.*|reorder_and_upcast_attn|"
    "router_(aux_loss_coef|jitter_noise)|norm_topk_prob|clip_qkv|n_group|topk_(group|method)|"
    "scoring_func|routed_scaling_factor|aux_loss_alpha|seq_aux|ep_size|qk_head_dim|"
    "num_mtp_layers|num_nextn_predict_layers"
)
#: How attention is run; written out in matmuls (eager), it needs its full square.
_ATTENTION = ("attn_implementation", "_attn_implementation")


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
    """Read the dict of a config.json; a warning names keys that are ignored. Raise a `UserError` for an
    unknown family, an impossible value, or one that the closed form does not cover."""
    name: Any = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:  # no nearest name: gemma is not gemma2
        raise UserError(
            f"model_type {name!r} is no causal language model with a closed form (known: "
            f"{', '.join(sorted(FAMILIES))}); modbench.count runs others of transformers"
        )
    given, family = _given(config), FAMILIES[name]
    wrong = [key for key in _NOT_COVERED if given.get(key)]
    wrong += [key for key in {*_WINDOWS} - family["keys"].keys() if given.get(key) is not None]
    wrong += [key for key in _ATTENTION if given.get(key) == "eager"]
    wrong += ["is_causal"] * (given.get("is_causal", True) is not True)
    for key in wrong:
        raise _not_covered(name, f"{key} {json.dumps(given[key], default=str)}")
    for where, keys in _nested(config, {*family["keys"], *family.get("names", ())}):
        raise UserError(
            f"config {where} holds {', '.join(keys)}, and '{name}' has its sizes at the top; give that "
            "part as a config of its own"
        )
    if ignored := ignored_keys(config):
        warnings.warn(f"config of '{name}': ignored: {', '.join(ignored)}", stacklevel=3)
    fields = {key: given.get(key, default) for key, default in family["keys"].items()}
    fields = {_FIELDS.get(key, key): value for key, value in fields.items()}
    if fields.get("use_sliding_window") is False:
        fields["sliding_window"] = None  # some configs say 0
    fields |= {"model_type": name, "layer_types": given.get("layer_types"), **family.get("fixed", {})}
    read: FamilyConfig = built("config", fields, FamilyConfig)
    kinds = set(read.layer_types or ())
    window = read.sliding_window
    mixed = "layer_types" in family["keys"]  # or alike in all layers
    possible = ["full_attention"] * (mixed or window is None)
    possible += ["sliding_attention"] * (window is not None)
    if kinds.difference(possible):
        raise _not_covered(name, f"layer_types {', '.join(sorted(kinds))} with a window of {window}")
    return read


def _not_covered(family: str, what: str) -> UserError:
    return UserError(
        f"config has {what}, which the closed form of '{family}' does not cover; correct it, or build "
        "the model with transformers and give that to modbench.count"
    )


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of ``config`` under the first of their names. Raise a `UserError` if two names of
    a key disagree."""
    names = FAMILIES[config["model_type"]].get("names", {})
    given: dict[str, Any] = {}
    for key, value in config.items():
        first = names.get(key, key)
        if given.setdefault(first, value) != value:
            raise UserError(f"config gives '{first}' twice, the other time as {key}; remove one")
    return given


def _nested(config: Mapping[str, Any], sizes: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each part of ``config``, at any depth, with those of ``sizes`` that it holds."""
    for key, part in config.items():
        if isinstance(part, Mapping):
            if held := sorted(sizes & part.keys()):
                yield key, held
            yield from ((f"{key}.{where}", held) for where, held in _nested(part, sizes))


def has_no_effect(key: str) -> bool:
    """Return True for a key of configs of transformers that never has an effect on FLOPs."""
    return _WITHOUT_EFFECT.fullmatch(key) is not None


def ignored_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the keys of a config.json that its closed form does not read, except those that never have
    an effect on FLOPs, those set to null, and those of other families set to false."""
    read = {"layer_types", "is_causal", *_ATTENTION, *_WINDOWS, *_NOT_COVERED}
    own = FAMILIES[config["model_type"]]
    read |= own["keys"].keys()
    if not config.get("use_sliding_window"):
        read.add("max_window_layers")
    off = {key for family in FAMILIES.values() for key in family["keys"]} - own.get("fixed", {}).keys()
    stated = {key: value for key, value in _given(config).items() if value is not None}
    unread = (key for key, value in stated.items() if not (value is False and key in off))
    return [key for key in unread if not (key in read or has_no_effect(key))]


def defaults_taken(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that a config.json leaves out, with the defaults that are read in their place."""
    given, keys = _given(config), FAMILIES[config["model_type"]]["keys"]
    return {key: default for key, default in keys.items() if key not in given}


def load_config(path: str | Path) -> dict[str, Any]:
    """Load a model's config.json from the file or its folder. Raise a `UserError` if the file can't be
    read or is not a JSON object."""
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
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
