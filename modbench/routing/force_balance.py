"""Forced balance: even routing for any scores, so that an untrained model can be timed.

Routers decide as usual. If the context forces balance, an even decision then replaces theirs: everything
that a router computes is still computed, and each layer spends its nominal FLOPs, also at each decode
step. A router calls these functions after its decision.

B sequences, T tokens, N tokens without padding, K experts of a token, S slots of a batch, E experts,
A choices.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from modbench.model.context import Context
from modbench.routing.topk import capacity_tokens


def strided(capacity: float, first: int, tokens: int, among: int = 1) -> list[bool]:
    """Return which of ``tokens`` tokens after ``first`` others are selected if
    ``capacity_tokens(capacity, n, among)`` of any first n are: those at floor(j * among / capacity) for
    j = 0, 1, ..."""
    row = [False] * tokens
    each = Fraction(repr(capacity)) / among
    before, end = (capacity_tokens(capacity, n, among) for n in (first, first + tokens))
    for j in range(before, end):
        row[j * each.denominator // each.numerator - first] = True
    return row


def strided_rows(
    capacity: float, before: Sequence[int], tokens: int, device: torch.device, among: int = 1
) -> Tensor:
    """Return `strided` of each sequence after its ``before[b]`` earlier tokens, (B, ``tokens``) bool. Do
    not write to it: results are cached."""
    if len(set(before)) == 1:
        return _strided(capacity, among, before[0], tokens, device).expand(len(before), tokens)
    return torch.stack([_strided(capacity, among, first, tokens, device) for first in before])


def even_tokens(decided_BT: Tensor, context: Context, capacity: float, among: int = 1) -> Tensor:
    """``decided_BT`` (bool), or under forced balance every (``among`` / ``capacity``)-th token of each
    sequence, counted on from those that came before. Padding is never selected."""
    if not context.forced_balance:
        return decided_BT
    context.trace.forced = True
    tokens = decided_BT.shape[1]
    before = context.before(decided_BT)
    even_BT = strided_rows(capacity, before, tokens, decided_BT.device, among)
    real_BT = context.real(decided_BT)
    return even_BT if real_BT is None else even_BT & real_BT


def even_experts(
    chosen_NK: Tensor, context: Context, before: int, experts: int, no_ops: int = 0
) -> Tensor:
    """``chosen_NK``, each token's experts, or under forced balance experts in turn, counted on from the
    ``before`` tokens that came earlier; of any first n choices floor(n * experts / (experts + no_ops))
    fall on ``experts``, the others on the ``no_ops`` that have the numbers after them."""
    if not context.forced_balance:
        return chosen_NK
    context.trace.forced = True
    tokens, each = chosen_NK.shape
    first = before * each % (experts + no_ops)  # the pattern's period
    return _in_turn(first, tokens * each, experts, no_ops, chosen_NK.device).view(tokens, each)


def _kept(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function`` with its results kept, for making them takes longer than a small layer, and a GPU
    would be waited for; a compiled program has them as constants. What is made under a mode (fake
    tensors, inference) may be of no use outside it."""
    kept = lru_cache(maxsize=512)(function)

    def call(*arguments: Any) -> Tensor:
        if (
            torch.compiler.is_compiling()
            or is_in_torch_dispatch_mode()
            or torch.is_inference_mode_enabled()
        ):
            return function(*arguments)
        return kept(*arguments)

    return call


@_kept
def _in_turn(first: int, choices: int, experts: int, no_ops: int, device: torch.device) -> Tensor:
    choice_A = torch.arange(first, first + choices, device=device)
    if not no_ops:
        return choice_A % experts
    real_A, next_A = (n_A * experts // (experts + no_ops) for n_A in (choice_A, choice_A + 1))
    return torch.where(next_A > real_A, real_A % experts, experts + (choice_A - real_A) % no_ops)


@_kept
def assigned_in_turn(each: float, first: int, tokens: int, experts: int, device: torch.device) -> Tensor:
    """Assignments (N, E) bool to experts in turn, of ``tokens`` tokens after ``first`` others; any first
    n tokens have floor(n * ``each``) of them. Not to be written to."""
    share = Fraction(repr(each))
    token_N = torch.arange(first, first + tokens + 1, device=device)
    begin_N = token_N * share.numerator // share.denominator
    distance_NE = (torch.arange(experts, device=device) - begin_N[:-1, None]) % experts
    return distance_NE < begin_N.diff()[:, None]


@_kept
def _strided(capacity: float, among: int, first: int, tokens: int, device: torch.device) -> Tensor:
    return torch.tensor(strided(capacity, first, tokens, among), device=device)
