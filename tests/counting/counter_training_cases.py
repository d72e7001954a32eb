"""Cases for FLOP counters: backward passes, where each matmul costs dX and dW, each only if needed.

B sequences, T tokens, D model width, H heads, P width of a head, F hidden width, N rows.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from counter_case import Case, Work, cases, mm, square
from counter_models import GroupedExperts, LoopExperts, compiled, mlp, written_attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

UP, DOWN = mm(6, 16, 64), mm(6, 64, 16)


def _step(module: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: module(x).sum().backward()


def _trained(module: nn.Module, *shape: int, input_gradient: bool = False) -> Work:
    return Work(run=_step(module, torch.randn(shape, requires_grad=input_gradient)))


def _frozen(layer: int, *, input_gradient: bool) -> Work:
    """An MLP of widths 16, 64, 16 with one frozen matmul."""
    module = mlp(16, 64, 16)
    module[2 * layer].requires_grad_(False)
    return _trained(module, 6, 16, input_gradient=input_gradient)


def _attention(function: Callable[..., Tensor], keys_too: bool = True) -> Work:
    q = torch.randn(2, 4, 20, 8, requires_grad=True)
    k, v = (torch.randn(2, 4, 20, 8, requires_grad=keys_too) for _ in range(2))
    return Work(run=lambda: function(q, k, v).sum().backward())


def _encoder_layer() -> Work:
    layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=24, dropout=0.0, batch_first=True)
    return _trained(layer, 2, 20, 16, input_gradient=True)


def _grouped(dtype: torch.dtype, last: int) -> Work:
    module = GroupedExperts(16, 24, [8, 8, 16, last], dtype)
    x = torch.randn(32, 16, dtype=dtype, requires_grad=True)
    return Work(run=lambda: module(x)[:last].sum().backward())


def _checkpointed(use_reentrant: bool) -> Work:
    module = mlp(16, 64, 16)
    x = torch.randn(6, 16, requires_grad=True)
    return Work(run=lambda: checkpoint(module, x, use_reentrant=use_reentrant).sum().backward())


def _accumulated() -> Work:
    module, pieces = mlp(16, 64, 16), torch.randn(3, 6, 16)
    optimizer = torch.optim.AdamW(module.parameters())

    def run() -> None:
        for piece in pieces:
            (module(piece).square().mean() / 3).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return Work(run=run)


def _double_backward() -> Work:
    x, w = torch.randn(6, 16, requires_grad=True), torch.randn(16, 64, requires_grad=True)

    def run() -> None:
        (slope,) = torch.autograd.grad((x @ w).pow(2).sum(), x, create_graph=True)
        slope.sum().backward()

    return Work(run=run)


def _autocast() -> Work:
    module, x = mlp(16, 64, 16), torch.randn(6, 16)

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = module(x).float().sum()
        loss.backward()

    return Work(run=run)


def _convolution() -> Work:
    return _trained(nn.Conv2d(4, 6, 3), 2, 4, 9, 9, input_gradient=True)


MHA = mm(2 * 20, 16, 48) + square(2, 4, 20, 20, 4) + mm(2 * 20, 16, 16)
FEED = mm(2 * 20, 16, 24) + mm(2 * 20, 24, 16)
SCORES = square(2, 4, 20, 20, 8)
EXPERT_ROW = mm(1, 16, 24) + mm(1, 24, 16)


TRAINING_CASES: list[Case] = cases(
    "training",
    (
        "MLP, input gradient",
        3 * (UP + DOWN),
        lambda: _trained(mlp(16, 64, 16), 6, 16, input_gradient=True),
    ),
    ("MLP, no input gradient", 2 * UP + 3 * DOWN, lambda: _trained(mlp(16, 64, 16), 6, 16)),
    ("MLP, autocast", 2 * UP + 3 * DOWN, _autocast),
    (
        "MLP, first matmul frozen, no input gradient",
        UP + 2 * DOWN,
        lambda: _frozen(0, input_gradient=False),
    ),
    (
        "MLP, second matmul frozen",
        2 * UP + 2 * DOWN,
        lambda: _frozen(1, input_gradient=False),
    ),
    (
        "MLP by aot_eager",
        2 * UP + 3 * DOWN,
        lambda: _trained(compiled(mlp(16, 64, 16), "aot_eager"), 6, 16),
    ),
    ("attention as matmuls", 3 * SCORES, lambda: _attention(written_attention)),
    (
        # dQ and the two halves of what it takes: dP, then dQ; not dK, not dV.
        "attention as matmuls, queries alone",
        2 * SCORES,
        lambda: _attention(written_attention, keys_too=False),
    ),
    ("SDPA", 3 * SCORES, lambda: _attention(F.scaled_dot_product_attention), SCORES // 2),
    (
        "SDPA, causal",
        3 * SCORES,
        lambda: _attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        SCORES // 2,
    ),
    ("TransformerEncoderLayer", 3 * (MHA + FEED), _encoder_layer, square(2, 4, 20, 20, 4) // 2),
    ("convolution", 3 * 2 * 2 * 6 * 7 * 7 * 4 * 9, _convolution),
    (
        # The gate's gradient to its input, too, though the choice has none.
        "loop over experts, two empty",
        3 * (mm(32, 16, 4) + 32 * EXPERT_ROW),
        lambda: _trained(
            LoopExperts(16, 24, 4, torch.tensor([0, 3] * 16)[:, None]), 32, 16, input_gradient=True
        ),
    ),
    ("grouped_mm, float32", 3 * 32 * EXPERT_ROW, lambda: _grouped(torch.float32, 32)),
    ("grouped_mm, bfloat16", 3 * 32 * EXPERT_ROW, lambda: _grouped(torch.bfloat16, 32)),
    (
        "grouped_mm, rows beyond the last group",
        3 * 24 * EXPERT_ROW,
        lambda: _grouped(torch.bfloat16, 24),
    ),
    ("gradient accumulation, optimizer", 3 * (2 * UP + 3 * DOWN), _accumulated),
    # x @ w; its dX; then through both: that dX's two operands, and the first matmul's two.
    ("double backward", 6 * UP, _double_backward),
    (
        "checkpoint, reentrant",
        3 * (UP + DOWN),
        lambda: _checkpointed(use_reentrant=True),
        UP + DOWN,
    ),
    (
        # It stops at the last tensor that the backward pass needs, before the last matmul.
        "checkpoint, non-reentrant",
        3 * (UP + DOWN),
        lambda: _checkpointed(use_reentrant=False),
        UP,
    ),
)
