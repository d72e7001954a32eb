"""A causal language model as the matrices of its layers, built from its config as transformers does.

Every family is described by this, so that one ledger serves all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from modbench.hf.families.config import FamilyConfig
from modbench.ledger import Flops, Ledger, Workload, attention, matmul


@dataclass(frozen=True)
class Matrix:
    """A weight of (inner, outer) in ``copies``, ``met`` used by each token (its experts).
    ``again``: every step also applies it to all cached tokens."""

    component: str
    inner: int
    outer: int
    copies: int = 1
    met: int = 1
    again: bool = False

    @property
    def size(self) -> int:
        return self.inner * self.outer


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A block: its matrices, its attention, and its ``further`` parameters (biases, norms).

    ``head_width`` is that of queries and keys, ``value_width`` that of values. A token sees the last
    ``window`` tokens. With ``dropout`` on attention weights, training does not use the fused kernels.
    """

    matrices: tuple[Matrix, ...]
    heads: int
    head_width: int
    value_width: int
    window: int | None
    dropout: bool
    further: int

    def ledger(self, workload: Workload) -> Ledger:
        rows = {False: workload.slots, True: _cached_and_new(workload)}
        ledger = Ledger.sum(
            matmul(workload, 0, m.component, rows=rows[m.again] * m.met, inner=m.inner, columns=m.outer)
            for m in self.matrices
        )
        ledger += attention(
            workload,
            0,
            heads=self.heads,
            head_width=self.head_width,
            value_width=self.value_width,
            gradient=True,
            pairs=_pairs(self.window, workload),
            # PyTorch has no fused CPU kernel for dropout.
            fused=not (self.dropout and workload.phase == "train"),
        )
        again = workload.checkpoint and workload.phase == "train"
        return ledger + ledger.recomputed() if again else ledger


def _cached_and_new(workload: Workload) -> int:
    """Rows of a matmul that each step applies to the whole cache."""
    if workload.phase == "decode":
        return workload.pairs().full
    wide = [new + past for new, past in zip(workload.lengths, workload.past, strict=True)]
    return workload.sequences * max(wide) if workload.padding else sum(wide)


def _pairs(window: int | None, workload: Workload) -> Flops:
    """Query-key pairs of a layer. A cache keeps at most one window of tokens, which makes ``full``
    smaller."""
    if window is None:
        return workload.pairs()
    needed = workload.pairs(window).model
    if workload.phase == "decode" and not workload.padding:
        return Flops(needed, needed)
    given = replace(workload, past=tuple(min(past, window - 1) for past in workload.past)).pairs(window)
    return Flops(needed, given.full, given.executed)


def layers_of(config: FamilyConfig, *, dense: bool = False) -> list[Layer]:
    """Return the pre-norm blocks of a model: attention, and MLPs or experts. With ``dense``, an MLP of
    the config's ``intermediate_size`` replaces experts."""
    width = config.hidden_size
    block = _grouped(config) if config.kv_lora_rank is None else _latent(config, config.kv_lora_rank)
    block = replace(block, further=block.further + 2 * norm_parameters(config))
    hidden = config.intermediate_size or 4 * width
    mlp = _gated("mlp", width, hidden)
    if config.model_type == "gpt2":
        mlp = (Matrix("mlp", width, hidden), Matrix("mlp", hidden, width))
    bias = config.mlp_bias * sum(matrix.outer for matrix in mlp)
    with_mlp = replace(block, matrices=block.matrices + mlp, further=block.further + bias)
    with_experts = replace(block, matrices=block.matrices + tuple(_experts(config)))
    without = config.mlp_only_layers or ()
    return [
        replace(
            with_experts
            if config.num_experts
            and not dense
            and number >= config.first_k_dense_replace
            and (number + 1) % config.decoder_sparse_step == 0
            and number not in without
            else with_mlp,
            window=config.sliding_window if _slides(config, number) else None,
        )
        for number in range(config.num_hidden_layers)
    ]


def norm_parameters(config: FamilyConfig) -> int:
    """Return the parameters of one norm of the residual stream: a scale, and in GPT-2 a bias."""
    return config.hidden_size * (2 if config.model_type == "gpt2" else 1)


def _slides(config: FamilyConfig, layer: int) -> bool:
    """Return True if the attention of ``layer`` has a window."""
    border = config.max_window_layers
    kinds = config.layer_types
    if kinds is not None:
        return kinds[layer] == "sliding_attention"
    if config.model_type == "qwen2_moe":
        return layer % 2 == 0 and layer < (border or 0)
    return layer >= (border or 0)


def _grouped(config: FamilyConfig) -> Layer:
    """Attention with queries in groups that share keys and values."""
    width, heads = config.hidden_size, config.num_attention_heads
    head = config.head_dim or width // heads
    query, pair = heads * head, 2 * (config.num_key_value_heads or heads) * head
    qkv_bias = config.attention_bias if config.qkv_bias is None else config.qkv_bias
    further = qkv_bias * (query + pair) + config.attention_bias * width
    further += {None: 0, "head": 2 * head, "width": query + pair // 2}[config.query_key_norm]
    return Layer(
        matrices=(Matrix("attention.qkv", width, query + pair), Matrix("attention.out", query, width)),
        heads=heads,
        head_width=head,
        value_width=head,
        window=None,
        dropout=bool(config.attention_dropout),
        further=further,
    )


def _latent(config: FamilyConfig, rank: int) -> Layer:
    """Multi-head latent attention: the cache holds latents, and each step expands all of them into keys
    and values, as transformers does. (Kernels that attend to the latents themselves cost less.)"""
    width, heads, value = config.hidden_size, config.num_attention_heads, config.v_head_dim
    nope, rope, query_rank = config.qk_nope_head_dim, config.qk_rope_head_dim, config.q_lora_rank
    query = heads * (nope + rope)
    ranks = (query_rank or 0) + rank
    qkv = partial(Matrix, "attention.qkv")
    queries = (qkv(width, query),)
    if query_rank is not None:
        queries = (qkv(width, query_rank), qkv(query_rank, query))  # type: ignore[assignment]
    return Layer(
        matrices=(
            *queries,
            qkv(width, rank + rope),
            qkv(rank, heads * (nope + value), again=True),
            Matrix("attention.out", heads * value, width),
        ),
        heads=heads,
        head_width=nope + rope,
        value_width=value,
        window=None,
        dropout=bool(config.attention_dropout),
        further=ranks + config.attention_bias * (ranks + rope + width),
    )


def _gated(component: str, width: int, hidden: int, copies: int = 1, met: int = 1) -> tuple[Matrix, ...]:
    up = Matrix(component, width, 2 * hidden, copies, met)
    return up, Matrix(component, hidden, width, copies, met)


def _experts(config: FamilyConfig) -> Iterator[Matrix]:
    width, experts = config.hidden_size, config.num_experts
    hidden = config.moe_intermediate_size or config.intermediate_size or 4 * width
    yield Matrix("router", width, experts)
    yield from _gated("experts", width, hidden, copies=experts, met=config.num_experts_per_tok)
    if config.shared_expert_intermediate_size is not None:
        yield Matrix("router", width, 1)
        yield from _gated("experts", width, config.shared_expert_intermediate_size)
    if config.n_shared_experts:
        yield from _gated("experts", width, config.n_shared_experts * hidden)
