"""Tokens to experts and back. Differentiable once. The plain twins are in the tests.

`dispatch` and `combine` are for tokens that each meet as many experts: gathering, never scattering, in
both directions. With each token's places among the rows at hand, what several experts make of a token,
and the gradients that come back to it, are gathered and summed in order: deterministic, and without the
atomic or ordered additions of an index_add. `to_experts` and `from_experts` are for tokens that meet any
number of experts.

N tokens, K experts of a token, A rows (assignments that are computed), D model width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Assignments:
    """``order_A``: of the M = N * K assignments, token by token, which one each row is. ``row_M``: of
    each of them the row, anything where it has none. ``dropped_M`` (bool): it has none; None: each has
    one."""

    order_A: Tensor
    row_M: Tensor
    dropped_M: Tensor | None
    each: int

    @classmethod
    def of(cls, order_A: Tensor, assignments: int, each: int) -> "Assignments":
        """Those of ``order_A`` out of ``assignments``, ``each`` to a token."""
        row_A = torch.arange(len(order_A), device=order_A.device)
        row_M = torch.zeros(assignments, dtype=torch.long, device=order_A.device)
        row_M = row_M.scatter_(0, order_A, row_A)
        dropped_M = None
        if len(order_A) < assignments:
            dropped_M = torch.ones_like(row_M, dtype=torch.bool).scatter_(0, order_A, 0)
        return cls(order_A, row_M, dropped_M, each)

    @property
    def tokens(self) -> Tensor:
        """The token of each row, (A,)."""
        return self.order_A // self.each

    def of_tokens(self, rows_AD: Tensor) -> Tensor:
        """Each token's rows, (N, K, D); 0 where an assignment has none."""
        if not len(rows_AD):
            return rows_AD.new_zeros(len(self.row_M) // self.each, self.each, rows_AD.shape[1])
        rows_MD = rows_AD.index_select(0, self.row_M)
        if self.dropped_M is not None:
            rows_MD.masked_fill_(self.dropped_M[:, None], 0)
        return rows_MD.unflatten(0, (-1, self.each))


def dispatch(x_ND: Tensor, assignments: Assignments, dtype: torch.dtype) -> Tensor:
    """The rows that experts are given, (A, D), in ``dtype``."""
    if not torch.is_grad_enabled():
        return x_ND.to(dtype).index_select(0, assignments.tokens)
    return _Dispatch.apply(x_ND, assignments, dtype)  # type: ignore[no-any-return, no-untyped-call]


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, assignments: Assignments, dtype: torch.dtype) -> Tensor:
        ctx.assignments, ctx.dtype = assignments, x_ND.dtype
        return x_ND.to(dtype).index_select(0, assignments.tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_AD: Tensor) -> tuple[Tensor, None, None]:
        first_ND, *others = ctx.assignments.of_tokens(gradient_AD).unbind(1)
        of_x_ND = first_ND.to(ctx.dtype, copy=True)
        for gradient_ND in others:  # a sum over so few takes twice as long
            of_x_ND += gradient_ND
        return of_x_ND, None, None


def combine(rows_AD: Tensor, gates_NK: Tensor, assignments: Assignments) -> Tensor:
    """Each token's sum of what its experts made of it, weighted by its gates, (N, D), in the gates'
    dtype."""
    if not torch.is_grad_enabled():
        return _combined(rows_AD, gates_NK, assignments)
    return _Combine.apply(rows_AD, gates_NK, assignments)  # type: ignore[no-any-return, no-untyped-call]


def _combined(rows_AD: Tensor, gates_NK: Tensor, assignments: Assignments) -> Tensor:
    out_ND = None
    for rows_ND, gates_N in zip(
        assignments.of_tokens(rows_AD).unbind(1), gates_NK.unbind(1), strict=True
    ):
        if out_ND is None:
            out_ND = rows_ND * gates_N[:, None]
        elif torch.compiler.is_compiling():
            # PyTorch 2.11 compiles no gradient of a result that was changed in place.
            out_ND = torch.addcmul(out_ND, rows_ND, gates_N[:, None])
        else:
            out_ND.addcmul_(rows_ND, gates_N[:, None])
    assert out_ND is not None
    return out_ND


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_AD: Tensor, gates_NK: Tensor, assignments: Assignments) -> Tensor:
        ctx.save_for_backward(rows_AD, gates_NK)
        ctx.assignments = assignments
        return _combined(rows_AD, gates_NK, assignments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor, Tensor, None]:
        rows_AD, gates_NK = ctx.saved_tensors
        assignments: Assignments = ctx.assignments
        of_rows_AD = gradient_ND.index_select(0, assignments.tokens)
        of_gates_A = rows_AD.to(gates_NK.dtype, copy=True).mul_(of_rows_AD).sum(-1)
        gates_A = gates_NK.flatten().index_select(0, assignments.order_A)
        of_gates_M = torch.zeros_like(gates_NK).flatten().scatter_(0, assignments.order_A, of_gates_A)
        of_rows_AD = of_rows_AD.mul_(gates_A[:, None]).to(rows_AD.dtype)
        return of_rows_AD, of_gates_M.view_as(gates_NK), None


def to_experts(x_ND: Tensor, tokens_A: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows that experts are given, (A, D), in ``dtype``: row a is of token ``tokens_A[a]``."""
    if torch.compiler.is_compiling():  # which differentiates it, and so sums in the tokens' dtype, too
        return x_ND.index_select(0, tokens_A).to(dtype)
    if not torch.is_grad_enabled():
        return x_ND.to(dtype).index_select(0, tokens_A)
    return _ToExperts.apply(x_ND, tokens_A, dtype)  # type: ignore[no-any-return, no-untyped-call]


class _ToExperts(torch.autograd.Function):
    """Gradients are summed in the tokens' dtype."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, tokens_A: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(tokens_A)
        ctx.tokens, ctx.dtype = len(x_ND), x_ND.dtype
        return x_ND.to(dtype).index_select(0, tokens_A)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_AD: Tensor) -> tuple[Tensor, None, None]:
        (tokens_A,) = ctx.saved_tensors
        return _sums(gradient_AD.to(ctx.dtype), tokens_A, ctx.tokens), None, None


def from_experts(rows_AD: Tensor, gates_A: Tensor, tokens_A: Tensor, tokens: int) -> Tensor:
    """Each of ``tokens`` tokens' sum of its rows, weighted by their gates, (N, D), in the gates' dtype;
    0 of a token that has none."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _sums(rows_AD * gates_A[:, None], tokens_A, tokens)
    return _FromExperts.apply(rows_AD, gates_A, tokens_A, tokens)  # type: ignore[no-any-return, no-untyped-call]


class _FromExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_AD: Tensor, gates_A: Tensor, tokens_A: Tensor, tokens: int) -> Tensor:
        ctx.save_for_backward(rows_AD, gates_A, tokens_A)
        # A product of two dtypes takes twice as long as one after a cast.
        weighted_AD = rows_AD.to(gates_A.dtype, copy=True).mul_(gates_A[:, None])
        return _sums(weighted_AD, tokens_A, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows_AD, gates_A, tokens_A = ctx.saved_tensors
        of_rows_AD = gradient_ND.index_select(0, tokens_A)
        of_gates_A = rows_AD.to(gates_A.dtype, copy=True).mul_(of_rows_AD).sum(-1)
        return of_rows_AD.mul_(gates_A[:, None]).to(rows_AD.dtype), of_gates_A, None, None


def _sums(rows_AD: Tensor, tokens_A: Tensor, tokens: int) -> Tensor:
    out_ND = rows_AD.new_zeros(tokens, rows_AD.shape[1])
    if torch.compiler.is_compiling():  # see `_combined`
        return out_ND.index_add(0, tokens_A, rows_AD)
    return out_ND.index_add_(0, tokens_A, rows_AD)
