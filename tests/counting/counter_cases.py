"""Cases for FLOP counters: forward passes of ops and small parts, and `CASES`, which has all of them.

B sequences, T tokens, D model width, H heads, P width of a head, N rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from counter_case import Case, Work, call, cases, forward, mm, square
from counter_gradient_cases import GRADIENT_CASES
from counter_model_cases import MODEL_CASES
from counter_models import (
    Attention,
    Block,
    Call,
    DepthRouted,
    ExpertChoice,
    GroupedExperts,
    LoopExperts,
    OneHotExperts,
    compiled,
    einsum_attention,
    hidden_matmul,
    mlp,
    written_attention,
)
from counter_parallel_cases import PARALLEL_CASES
from counter_training_cases import TRAINING_CASES
from torch import Tensor, nn

BASIC = cases(
    "basic ops",
    ("mm", mm(9, 16, 7), call(lambda x, y: torch.mm(x, y), (9, 16), (16, 7))),
    ("bmm", 5 * mm(9, 16, 7), call(lambda x, y: torch.bmm(x, y), (5, 9, 16), (5, 16, 7))),
    ("matmul, broadcast", 12 * mm(9, 16, 7), call(lambda x, y: x @ y, (4, 1, 9, 16), (3, 16, 7))),
    ("matmul, folded", 5 * mm(9, 16, 7), call(lambda x, y: torch.matmul(x, y), (5, 9, 16), (16, 7))),
    ("addmm", mm(9, 16, 7), call(lambda b, x, y: torch.addmm(b, x, y), (7,), (9, 16), (16, 7))),
    (
        "baddbmm",
        5 * mm(9, 16, 7),
        call(lambda b, x, y: torch.baddbmm(b, x, y), (5, 9, 7), (5, 9, 16), (5, 16, 7)),
    ),
    (
        "addbmm",
        5 * mm(9, 16, 7),
        call(lambda b, x, y: torch.addbmm(b, x, y), (9, 7), (5, 9, 16), (5, 16, 7)),
    ),
    ("mv", mm(9, 16, 1), call(lambda x, y: torch.mv(x, y), (9, 16), (16,))),
    ("dot", mm(1, 16, 1), call(lambda x, y: torch.dot(x, y), (16,), (16,))),
    (
        "linear with bias",
        mm(5 * 9, 16, 7),
        lambda: forward(nn.Linear(16, 7), torch.randn(5, 9, 16)),
    ),
    (
        "einsum, two operands",
        mm(5 * 9, 16, 7),
        call(lambda x, y: torch.einsum("btd,de->bte", x, y), (5, 9, 16), (16, 7)),
    ),
    (
        # Left to right is also the cheaper way, so that a path optimizer changes nothing.
        "einsum, three operands",
        mm(9, 16, 7) + mm(9, 7, 11),
        call(lambda x, y, z: torch.einsum("ab,bc,cd->ad", x, y, z), (9, 16), (16, 7), (7, 11)),
    ),
    (
        "einsum, broadcast",
        12 * mm(9, 16, 7),
        call(lambda x, y: torch.einsum("...ij,...jk->...ik", x, y), (4, 1, 9, 16), (3, 16, 7)),
    ),
)


def _sdpa(
    dtype: torch.dtype = torch.float32,
    kv_heads: int = 4,
    value_width: int = 8,
    mask: Callable[[], Tensor] | None = None,
    **options: Any,
) -> Callable[[], Work]:
    """2 sequences, 4 heads, 20 queries and keys, head width 8."""

    def build() -> Work:
        q = torch.randn(2, 4, 20, 8, dtype=dtype)
        k = torch.randn(2, kv_heads, 20, 8, dtype=dtype)
        v = torch.randn(2, kv_heads, 20, value_width, dtype=dtype)
        if mask is None:
            return forward(
                Call(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)), q, k, v
            )
        masked = Call(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask))
        return forward(masked, q, k, v, mask())

    return build


class _Self(nn.Module):
    def __init__(self, training: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.train(training)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.attention(x_BTD, x_BTD, x_BTD, need_weights=False)[0]


def _encoder_layer(training: bool) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=24, dropout=0.0, batch_first=True)
    return layer.train(training)


def _sequences() -> Tensor:
    return torch.randn(2, 20, 16)


SDPA = square(2, 4, 20, 20, 8)
MHA = mm(2 * 20, 16, 48) + square(2, 4, 20, 20, 4) + mm(2 * 20, 16, 16)
FEED = mm(2 * 20, 16, 24) + mm(2 * 20, 24, 16)

ATTENTION = cases(
    "attention",
    ("SDPA", SDPA, _sdpa()),
    ("SDPA, causal", SDPA, _sdpa(is_causal=True)),
    ("SDPA, causal, bfloat16", SDPA, _sdpa(torch.bfloat16, is_causal=True)),
    ("SDPA, boolean mask", SDPA, _sdpa(mask=lambda: torch.ones(20, 20, dtype=torch.bool).tril())),
    ("SDPA, additive mask", SDPA, _sdpa(mask=lambda: torch.randn(20, 20))),
    ("SDPA, grouped queries", SDPA, _sdpa(kv_heads=2, is_causal=True, enable_gqa=True)),
    (
        "SDPA, wider values",
        mm(2 * 4 * 20, 8, 20) + mm(2 * 4 * 20, 20, 12),
        _sdpa(value_width=12),
    ),
    ("attention as matmuls", SDPA, call(written_attention, *[(2, 4, 20, 8)] * 3)),
    ("attention as einsums", SDPA, call(einsum_attention, *[(2, 20, 4, 8)] * 3)),
    ("MultiheadAttention, training", MHA, lambda: forward(_Self(True), _sequences())),
    ("MultiheadAttention, fused", MHA, lambda: forward(_Self(False), _sequences())),
    (
        "TransformerEncoderLayer, training",
        MHA + FEED,
        lambda: forward(_encoder_layer(True), _sequences()),
    ),
    (
        "TransformerEncoderLayer, fused",
        MHA + FEED,
        lambda: forward(_encoder_layer(False), _sequences()),
    ),
    (
        "TransformerEncoder, fused",
        3 * (MHA + FEED),
        lambda: forward(nn.TransformerEncoder(_encoder_layer(False), 3).eval(), _sequences()),
    ),
    (
        # Self-attention, then attention of 20 queries over 12 keys, then the MLP.
        "TransformerDecoderLayer",
        MHA
        + mm(2 * 20, 16, 16)
        + mm(2 * 12, 16, 32)
        + square(2, 4, 20, 12, 4)
        + mm(2 * 20, 16, 16)
        + FEED,
        lambda: forward(
            nn.TransformerDecoderLayer(16, 4, dim_feedforward=24, dropout=0.0, batch_first=True),
            _sequences(),
            torch.randn(2, 12, 16),
        ),
    ),
)

CONVOLUTION = cases(
    "convolution",
    # Outputs times what each of them meets: input channels of its group times the filter's size.
    ("1-d", 2 * 2 * 6 * 18 * 4 * 3, lambda: forward(nn.Conv1d(4, 6, 3), torch.randn(2, 4, 20))),
    ("2-d", 2 * 2 * 6 * 7 * 7 * 4 * 9, lambda: forward(nn.Conv2d(4, 6, 3), torch.randn(2, 4, 9, 9))),
    (
        "2-d, grouped, strided",
        2 * 2 * 8 * 4 * 4 * 2 * 9,
        lambda: forward(nn.Conv2d(4, 8, 3, groups=2, stride=2), torch.randn(2, 4, 9, 9)),
    ),
    (
        "1-d, depthwise, causal",
        2 * 2 * 6 * 20 * 4,
        lambda: forward(
            nn.Sequential(nn.ConstantPad1d((3, 0), 0.0), nn.Conv1d(6, 6, 4, groups=6)),
            torch.randn(2, 6, 20),
        ),
    ),
    (
        # Each input meets a filter of 5 channels, 2 by 2.
        "2-d, transposed",
        2 * 2 * 4 * 9 * 9 * 5 * 4,
        lambda: forward(nn.ConvTranspose2d(4, 5, 2, stride=2), torch.randn(2, 4, 9, 9)),
    ),
)


def _rows(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(32, 16, dtype=dtype)


def _two_of_four() -> Tensor:
    """32 rows; no row chooses experts 1 or 2."""
    return torch.tensor([0, 3] * 16)[:, None]


EXPERT_ROW = mm(1, 16, 24) + mm(1, 24, 16)
GATE = mm(32, 16, 4)

EXPERTS = cases(
    "experts",
    (
        "loop over experts, top 2",
        GATE + 64 * EXPERT_ROW,
        lambda: forward(LoopExperts(16, 24, 4, None), _rows()),
    ),
    (
        "loop over experts, top 1, two empty",
        GATE + 32 * EXPERT_ROW,
        lambda: forward(LoopExperts(16, 24, 4, _two_of_four()), _rows()),
    ),
    (
        # Dispatch (E*C, N) @ (N, D), two banks of E*C rows, combine (N, E*C) @ (E*C, D).
        "one-hot dispatch by einsum",
        GATE + mm(4 * 10, 32, 16) + 40 * EXPERT_ROW + mm(32, 4 * 10, 16),
        lambda: forward(OneHotExperts(16, 24, 4, 10), _rows()),
    ),
    (
        "expert choice by bmm",
        GATE + 4 * 12 * EXPERT_ROW,
        lambda: forward(ExpertChoice(16, 24, 4, 12), _rows()),
    ),
    (
        "grouped_mm, float32",
        32 * EXPERT_ROW,
        lambda: forward(GroupedExperts(16, 24, [8, 8, 24, 32], torch.float32), _rows()),
    ),
    (
        "grouped_mm, bfloat16",
        32 * EXPERT_ROW,
        lambda: forward(GroupedExperts(16, 24, [8, 8, 24, 32], torch.bfloat16), _rows(torch.bfloat16)),
    ),
    (
        "grouped_mm, rows beyond the last group",
        24 * EXPERT_ROW,
        lambda: forward(GroupedExperts(16, 24, [8, 8, 16, 24], torch.bfloat16), _rows(torch.bfloat16)),
    ),
)


def _depth(masked: bool) -> Work:
    block = Block(nn.LayerNorm, 16, Attention(16, 4, 4), mlp(16, 64, 16))
    return forward(DepthRouted(16, block, 4, masked), torch.randn(2, 32, 16))


def _block(tokens: int) -> int:
    """Width 16, 4 heads, hidden 64; 2 sequences."""
    rows = 2 * tokens
    attention = mm(rows, 16, 48) + square(2, 4, tokens, tokens, 4) + mm(rows, 16, 16)
    return attention + mm(rows, 16, 64) + mm(rows, 64, 16)


DEPTH = cases(
    "depth routing",
    # 12.5 % of 32 tokens are 4.
    ("gather, compute, scatter at 12.5 %", mm(64, 16, 1) + _block(4), lambda: _depth(False)),
    ("all computed, then masked", mm(64, 16, 1) + _block(32), lambda: _depth(True)),
)


def _cond(taken: bool) -> Work:
    def branch(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: (x @ x).relu(), (x,))

    return forward(Call(branch), torch.full((12, 12), 1.0 if taken else -1.0))


def _while() -> Work:
    def turns(x: Tensor) -> Tensor:
        loop = torch.ops.higher_order.while_loop
        start = (torch.tensor(0), x)
        return loop(lambda turn, x: turn < 3, lambda turn, x: (turn + 1, x @ x), start, ())[1]

    return forward(Call(turns), torch.eye(12))


CONTROL = cases(
    "control flow",
    ("cond, first branch", 2 * mm(12, 12, 12), lambda: _cond(True)),
    ("cond, second branch", mm(12, 12, 12), lambda: _cond(False)),
    ("while_loop, three turns", 3 * mm(12, 12, 12), _while),
)


class _Autocast(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x)


def _meta(module: nn.Module, *shape: int) -> Work:
    return forward(module.to("meta"), torch.randn(shape, device="meta"))


def _sparse(layout: str) -> Work:
    """9 stored elements."""
    dense = torch.zeros(9, 16)
    dense[torch.arange(9), torch.arange(9)] = 1.0
    sparse = dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()
    return forward(Call(lambda x, y: torch.sparse.mm(x, y)), sparse, torch.randn(16, 7))


def _bags() -> Work:
    """9 weighted rows in 3 bags."""
    indices = torch.arange(9).view(3, 3)
    bags = Call(lambda i, rows, w: F.embedding_bag(i, rows, mode="sum", per_sample_weights=w))
    return forward(bags, indices, torch.randn(16, 7), torch.randn(3, 3))


def _int8() -> Work:
    x, y = torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 24, dtype=torch.int8)
    return forward(Call(lambda x, y: torch._int_mm(x, y)), x, y)


MLP = mm(6, 16, 64) + mm(6, 64, 16)

KINDS = cases(
    "dtypes, devices, layouts",
    ("autocast to bfloat16", MLP, lambda: forward(_Autocast(mlp(16, 64, 16)), torch.randn(6, 16))),
    ("MLP on meta", MLP, lambda: _meta(mlp(16, 64, 16), 6, 16)),
    (
        "block on meta",
        _block(32),
        lambda: _meta(Block(nn.LayerNorm, 16, Attention(16, 4, 4), mlp(16, 64, 16)), 2, 32, 16),
    ),
    ("int8", mm(32, 16, 24), _int8),
    ("sparse COO", mm(9, 1, 7), lambda: _sparse("coo")),
    ("sparse CSR", mm(9, 1, 7), lambda: _sparse("csr")),
    ("embedding_bag, weighted", mm(9, 1, 7), _bags),
)


def _compiled(backend: str) -> Work:
    return forward(compiled(mlp(16, 64, 16), backend), torch.randn(6, 16))


COMPILED = cases(
    "compiled",
    *(
        (
            f"MLP by {backend}",
            MLP,
            partial(_compiled, backend),
        )
        for backend in ("eager", "aot_eager")
    ),
)

CUSTOM = cases(
    "custom op",
    ("no formula", mm(9, 16, 7), call(lambda x, y: hidden_matmul(x, y), (9, 16), (16, 7))),
    opaque=True,
)

CASES: list[Case] = [
    *BASIC,
    *ATTENTION,
    *CONVOLUTION,
    *EXPERTS,
    *DEPTH,
    *CONTROL,
    *KINDS,
    *COMPILED,
    *CUSTOM,
    *TRAINING_CASES,
    *GRADIENT_CASES,
    *PARALLEL_CASES,
    *MODEL_CASES,
]
