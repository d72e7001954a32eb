"""Cases for FLOP counters: whole language models, forward, in training and with a cache.

B sequences, T tokens, D model width, H heads, P width of a head, F hidden width, V vocabulary.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from counter_case import Case, Row, Work, cases, forward, mm, square
from counter_models import Attention, Block, Gated, LoopExperts, Rows, Stack, mlp
from torch import Tensor, nn

from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

B, T, D, H, P, F_, V, LAYERS = 2, 24, 32, 4, 8, 64, 97, 2
N = B * T
HEAD = mm(N, D, V)


def _attention(tokens: int = T, kv_heads: int = H) -> int:
    """Of ``tokens`` of each sequence."""
    rows = B * tokens
    columns = (H + 2 * kv_heads) * P
    return mm(rows, D, columns) + square(B, H, tokens, tokens, P) + mm(rows, D, D)


def _gated(rows: int, hidden: int = F_) -> int:
    """SwiGLU: gate and up, then down."""
    return mm(rows, D, 2 * hidden) + mm(rows, hidden, D)


def _tokens() -> Tensor:
    return torch.randint(V, (B, T))


def _gpt2(new: int = 0) -> nn.Module:
    blocks = [
        Block(nn.LayerNorm, D, Attention(D, H, H, bias=True), mlp(D, F_, D)) for _ in range(LAYERS)
    ]
    return Stack(V, D, blocks, new)


def _llama(new: int = 0) -> nn.Module:
    blocks = [Block(nn.RMSNorm, D, Attention(D, H, 2), Gated(D, F_)) for _ in range(LAYERS)]
    return Stack(V, D, blocks, new)


def _mixtral() -> nn.Module:
    blocks = [
        Block(nn.RMSNorm, D, Attention(D, H, 2), Rows(LoopExperts(D, F_, 4, None)))
        for _ in range(LAYERS)
    ]
    return Stack(V, D, blocks)


def _train(logits: Callable[[Tensor], Tensor]) -> Work:
    tokens_BT = torch.randint(V, (B, T + 1))

    def run() -> None:
        logits_BTV = logits(tokens_BT[:, :-1])
        F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()

    return Work(run=run)


def _both(name: str, model: Callable[[], nn.Module], flops: int, again: int) -> Iterable[Row]:
    """Forward, and a training step, in which every matmul has both gradients."""
    yield f"{name}, forward", flops, lambda: forward(model().eval(), _tokens())
    yield f"{name}, training", 3 * flops, lambda: _train(model()), again


#: The scores, once more in the backward pass of fused attention.
AGAIN = LAYERS * square(B, H, T, T, P) // 2
GPT2 = LAYERS * (_attention() + mm(N, D, F_) + mm(N, F_, D)) + HEAD
LLAMA = LAYERS * (_attention(kv_heads=2) + _gated(N)) + HEAD
MIXTRAL = LAYERS * (_attention(kv_heads=2) + mm(N, D, 4) + mm(2 * N, D, F_) + mm(2 * N, F_, D)) + HEAD

WHOLE = cases(
    "whole models",
    *_both("GPT-2's shape", _gpt2, GPT2, AGAIN),
    *_both("Llama's shape", _llama, LLAMA, AGAIN),
    *_both("Mixtral's shape", _mixtral, MIXTRAL, AGAIN),
)


class _Decoder(nn.Module):
    """One of our decoders, tensors in and tensors out; losses, too, since a trace drops what nothing
    comes of."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        super().__init__()
        shape = ModelConfig(vocabulary=V, width=D, layers=LAYERS, heads=H, mlp="swiglu", mlp_width=F_)
        self.model = build_model(shape, build_router(name, options))
        if name == "mode_integrated":
            # Of two real experts a token likes one as much as it dislikes the other, and the no-op
            # experts not at all: so each chooses one of either kind.
            with torch.no_grad():
                for layer in self.model.layers:
                    weight = layer.feed_forward.router.weight
                    weight[1:] = 0.0
                    weight[1] = -weight[0]

    def forward(self, tokens_BT: Tensor) -> tuple[Tensor, ...]:
        context = Context(selection="topk")
        logits_BTV = self.model(tokens_BT, context)
        return (logits_BTV, *context.trace.losses.values())


def _scored(name: str, options: dict[str, Any]) -> Work:
    return forward(_Decoder(name, options).eval(), _tokens())


def _stepped(name: str, options: dict[str, Any]) -> Work:
    model = _Decoder(name, options).train()
    tokens_BT = torch.randint(V, (B, T + 1))

    def run() -> None:
        logits_BTV, *losses = model(tokens_BT[:, :-1])
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
        torch.stack([loss, *losses]).sum().backward()

    return Work(run=run)


def _bank(rows: int) -> int:
    """Experts of half the dense MLP's width, ``rows`` assignments in all."""
    return _gated(rows, F_ // 2)


EIGHT = {"experts": 8, "top_k": 2}
DEPTH = {"capacity": 0.125, "every": 2, "causal": "predictor"}
KEPT = 3  # 12.5 % of 24 tokens
#: In addition to the block: router, and the predictor's two matmuls (hidden: D / 2).
CHOICE, WATCH_UP, WATCH_DOWN = mm(N, D, 1), mm(N, D, D // 2), mm(N, D // 2, 1)
AGAIN_KEPT = (square(B, H, T, T, P) + square(B, H, KEPT, KEPT, P)) // 2
DENSE = _attention() + _gated(N)
TOKEN = _attention() + mm(N, D, 8) + _bank(2 * N)

#: Router, its options, forward FLOPs, how many of them have no gradient to the input in training, and
#: what is run again.
OURS: tuple[tuple[str, dict[str, Any], int, int, int], ...] = (
    ("vanilla", {}, 2 * DENSE + HEAD, 0, AGAIN),
    ("token_choice", EIGHT, 2 * TOKEN + HEAD, 0, AGAIN),
    (
        # Each of 4 experts takes 2 * 24 / 4 tokens of each sequence.
        "expert_choice",
        {"experts": 4, "capacity": 2.0},
        2 * (_attention() + mm(N, D, 4) + _bank(4 * B * 12)) + HEAD,
        0,
        AGAIN,
    ),
    (
        "mod",
        DEPTH,
        DENSE + CHOICE + WATCH_UP + WATCH_DOWN + _attention(KEPT) + _gated(B * KEPT) + HEAD,
        WATCH_UP,
        AGAIN_KEPT,
    ),
    (
        "mode_staged",
        DEPTH | EIGHT,
        TOKEN
        + (CHOICE + WATCH_UP + WATCH_DOWN)
        + (_attention(KEPT) + mm(B * KEPT, D, 8) + _bank(2 * B * KEPT))
        + HEAD,
        WATCH_UP,
        AGAIN_KEPT,
    ),
    (
        # One real expert for each token, see `_Decoder`.
        "mode_integrated",
        {"experts": 2, "top_k": 2, "no_op_experts": 2},
        2 * (_attention() + mm(N, D, 4) + _bank(N)) + HEAD,
        0,
        AGAIN,
    ),
)


def _ours() -> Iterable[Row]:
    for name, options, flops, no_input_gradient, again in OURS:
        yield f"{name}, forward", flops, partial(_scored, name, options)
        training = 3 * flops - no_input_gradient
        yield f"{name}, training", training, partial(_stepped, name, options), again


class _Logits(nn.Module):
    """A Hugging Face model, tensors in and a tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.model(tokens_BT, use_cache=False).logits


def _hf_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=V,
        n_positions=T,
        n_embd=D,
        n_layer=LAYERS,
        n_head=H,
        n_inner=F_,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _Logits(GPT2LMHeadModel(config))


def _hf_mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=F_,
        num_hidden_layers=LAYERS,
        num_attention_heads=H,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=T,
    )
    return _Logits(MixtralForCausalLM(config))


#: Gate, up and down of each of 2 experts. The rotary angles are no matmul (transformers 5.24; releases
#: before wrote them as one).
HF_MIXTRAL = LAYERS * (_attention(kv_heads=2) + mm(N, D, 4) + _gated(2 * N)) + HEAD

HF = cases(
    "Hugging Face",
    # Its dropout keeps attention off the fused kernel in training: no scores twice.
    *_both("GPT-2", _hf_gpt2, GPT2, 0),
    ("Mixtral, forward", HF_MIXTRAL, lambda: forward(_hf_mixtral().eval(), _tokens())),
    wants="transformers",
)


def _read(prompt: int, kv_heads: int, feed: Callable[[int], int]) -> int:
    """A prompt at once, then the other tokens one at a time: step t attends to the t before it and
    itself. Logits of all."""
    pairs = prompt * prompt + sum(range(prompt + 1, T + 1))
    rows = mm(N, D, (H + 2 * kv_heads) * P) + mm(N, D, D) + feed(N)
    return LAYERS * (rows + square(B, H, 1, pairs, P)) + HEAD


CACHE = cases(
    "inference with a cache",
    (
        "GPT-2's shape, prefill 16, decode 8",
        _read(16, H, lambda rows: mm(rows, D, F_) + mm(rows, F_, D)),
        lambda: forward(_gpt2(new=8), _tokens()),
    ),
    (
        "Llama's shape, prefill 1, decode 23",
        _read(1, 2, _gated),
        lambda: forward(_llama(new=23), _tokens()),
    ),
)

MODEL_CASES: list[Case] = [*WHOLE, *cases("our routers", *_ours()), *HF, *CACHE]
