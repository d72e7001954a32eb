"""Builds a family's architecture from its config, as its model in transformers does."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from modbench.accounting.families.architecture import Architecture, Layer, Matrix
from modbench.accounting.families.source import Source
from modbench.errors import UserError


def architecture_of(config: Mapping[str, Any], *, dense: bool = False) -> Architecture:
    """Build the architecture; with ``dense``, experts are replaced by an MLP of the config's
    ``intermediate_size``. Raise a `UserError` for an unknown family or an impossible shape."""
    source = Source(config)
    return _gpt2(source) if source.name == "gpt2" else _llama_like(source, dense)


def _gpt2(source: Source) -> Architecture:
    width, heads = source.size("n_embd"), source.size("n_head")
    hidden = source.size_or_none("n_inner") or 4 * width
    head = _divided("n_embd", width, "n_head", heads)
    layer = Layer(
        matrices=(
            Matrix("attention.qkv", width, 3 * width),
            Matrix("attention.out", width, width),
            Matrix("mlp", width, hidden),
            Matrix("mlp", hidden, width),
        ),
        heads=heads,
        key_heads=heads,
        head_width=head,
        value_width=head,
        dropout=bool(source.read("attn_pdrop", float | None)),
        further=(3 + 1) * width + hidden + width + 2 * 2 * width,
    )
    return Architecture(
        vocabulary=source.size("vocab_size"),
        width=width,
        layers=(layer,) * source.size("n_layer"),
        tied=source.flag("tie_word_embeddings"),
        further=2 * width,
        positions=source.size("n_positions"),
    )


def _llama_like(source: Source, all_dense: bool) -> Architecture:
    """Pre-norm blocks of RMSNorm, attention and gated MLPs or experts."""
    width, layers = source.size("hidden_size"), source.size("num_hidden_layers")
    attention = _latent(source, width) if "kv_lora_rank" in source else _grouped(source, width)
    matrices, head_width, value_width, further = attention
    heads, key_heads = _heads(source)
    dense = _gated("mlp", width, source.size("intermediate_size"))
    sparse = (False,) * layers if all_dense else _sparse(source, layers)
    windows = _windows(source, layers)
    experts = _experts(source, width) if any(sparse) else ()
    bias = source.flag(source.family.mlp_bias) * sum(matrix.columns for matrix in dense)
    kinds = {
        (is_sparse, window): Layer(
            matrices=matrices + (experts if is_sparse else dense),
            heads=heads,
            key_heads=key_heads,
            head_width=head_width,
            value_width=value_width,
            window=window,
            dropout=bool(source.read("attention_dropout", float | None)),
            further=further + (0 if is_sparse else bias) + 2 * width,
        )
        for is_sparse, window in set(zip(sparse, windows, strict=True))
    }
    return Architecture(
        vocabulary=source.size("vocab_size"),
        width=width,
        layers=tuple(kinds[kind] for kind in zip(sparse, windows, strict=True)),
        tied=source.flag("tie_word_embeddings"),
        further=width,
    )


def _divided(whole: str, total: int, part: str, parts: int) -> int:
    if total % parts:
        raise UserError(f"config {whole} is {total}; {part}, {parts}, must divide it")
    return total // parts


#: Matrices, width of a query or key and of a value, biases and norms.
_Attention = tuple[tuple[Matrix, ...], int, int, int]


def _heads(source: Source) -> tuple[int, int]:
    heads = source.size("num_attention_heads")
    groups = source.size_or_none("num_key_value_heads") or heads
    _divided("num_attention_heads", heads, "num_key_value_heads", groups)
    return heads, groups


def _grouped(source: Source, width: int) -> _Attention:
    """Queries in groups that share keys and values."""
    heads, groups = _heads(source)
    head = source.size_or_none("head_dim")
    if head is None or source.name == "llama":  # whose config insists on it
        each = _divided("hidden_size", width, "num_attention_heads", heads)
        head = each if head is None else head
    norm = source.family.query_key_norm
    query, pair = heads * head, 2 * groups * head
    further = source.flag(source.family.qkv_bias) * (query + pair)
    further += source.flag(source.family.out_bias) * width
    further += {"none": 0, "head": 2 * head, "width": query + pair // 2}[norm]
    qkv, out = Matrix("attention.qkv", width, query + pair), Matrix("attention.out", query, width)
    return (qkv, out), head, head, further


def _latent(source: Source, width: int) -> _Attention:
    """Multi-head latent attention: the cache holds latents, and each step expands all of them into keys
    and values, as transformers does. (Kernels that attend to the latents themselves cost less.)"""
    heads = source.size("num_attention_heads")
    nope, rope = source.size("qk_nope_head_dim"), source.size("qk_rope_head_dim")
    head, value = nope + rope, source.size("v_head_dim")
    query_rank, rank = source.size_or_none("q_lora_rank"), source.size("kv_lora_rank")

    qkv = partial(Matrix, "attention.qkv")
    query: tuple[Matrix, ...] = (qkv(width, heads * head),)
    if query_rank is not None:
        query = (qkv(width, query_rank), qkv(query_rank, heads * head))
    matrices = (
        *query,
        qkv(width, rank + rope),
        qkv(rank, heads * (nope + value), again=True),
        Matrix("attention.out", heads * value, width),
    )
    further = (query_rank or 0) + rank
    further += source.flag("attention_bias") * ((query_rank or 0) + rank + rope + width)
    return matrices, head, value, further


def _gated(component: str, width: int, hidden: int, **experts: Any) -> tuple[Matrix, Matrix]:
    up = Matrix(component, width, 2 * hidden, **experts)
    return up, Matrix(component, hidden, width, **experts)


def _expert_count(source: Source) -> int:
    """Number of routed experts. Qwen's models with 0 are dense."""
    for key in ("n_routed_experts", "num_local_experts", "num_experts"):
        if key in source:
            return source.size(key, least=0 if "decoder_sparse_step" in source else 1)
    return 0


def _experts(source: Source, width: int) -> tuple[Matrix, ...]:
    experts, chosen = _expert_count(source), source.size("num_experts_per_tok")
    if chosen > experts:
        raise UserError(
            f"config num_experts_per_tok is {chosen}; there are {experts} experts to choose from"
        )
    narrow = "moe_intermediate_size" if "moe_intermediate_size" in source else "intermediate_size"
    hidden = source.size(narrow)
    matrices = (
        Matrix("router", width, experts),
        *_gated("experts", width, hidden, copies=experts, met=chosen),
    )
    if "shared_expert_intermediate_size" in source:
        shared = source.size("shared_expert_intermediate_size")
        return (*matrices, Matrix("router", width, 1), *_gated("experts", width, shared))
    if "n_shared_experts" in source and (shared := source.size("n_shared_experts", least=0)):
        return (*matrices, *_gated("experts", width, shared * hidden))
    return matrices


def _sparse(source: Source, layers: int) -> tuple[bool, ...]:
    """Return for each layer if it has experts."""
    if not _expert_count(source):
        return (False,) * layers
    if "first_k_dense_replace" in source:
        dense = source.size("first_k_dense_replace", least=0)
        return tuple(number >= dense for number in range(layers))
    if "decoder_sparse_step" in source:
        step = source.size("decoder_sparse_step")
        without = source.read("mlp_only_layers", tuple[int, ...] | None) or ()
        return tuple((n + 1) % step == 0 and n not in without for n in range(layers))
    return (True,) * layers


def _windows(source: Source, layers: int) -> tuple[int | None, ...]:
    """Return each layer's attention window; None: unlimited."""
    if "sliding_window" not in source:
        return (None,) * layers
    slides = source.flag("use_sliding_window") if "use_sliding_window" in source else True
    window = source.size_or_none("sliding_window") if slides else None
    if "layer_types" not in source:
        return (window,) * layers
    kinds = source.read("layer_types", tuple[str, ...] | None)
    if kinds is None:
        border = source.size("max_window_layers", least=0)
        if source.name == "qwen2_moe":
            return tuple(window if n % 2 == 0 and n < border else None for n in range(layers))
        return tuple(window if n >= border else None for n in range(layers))
    if len(kinds) != layers:
        raise UserError(f"config layer_types names {len(kinds)} layers of {layers}; name each")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
