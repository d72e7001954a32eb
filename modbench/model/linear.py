"""A linear layer that takes any number of rows in its stride.

A CPU's bfloat16 matmuls are made anew for each number of rows (`modbench.model.grouped.ROWS`), which
takes longer than running them and is remembered in memory. Routed tokens come in another number each
time, so rows are filled up with zeros to a multiple there. In float32 a few rows, as when sequences are
decoded, are multiplied from the other side where that is faster (`modbench.model.processor`; `nox -s
perf`, "linear layers of a few rows over torch's"). The plain twin is `torch.nn.Linear`.

D columns that come in, F that come out, N rows, M of them with what fills them up.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from modbench.kernels.autocast import autocast_dtype
from modbench.model.grouped import (
    FEW,
    few,
    filled,
    filled_count,
    multiply,
    takes_few,
    weight_gradient,
)


class Linear(nn.Linear):
    """x W^T, (..., D) -> (..., F), without a bias."""

    def __init__(self, inner: int, columns: int) -> None:
        super().__init__(inner, columns, bias=False)

    def forward(self, x_D: Tensor) -> Tensor:
        return linear(x_D, self.weight)


def linear(x_D: Tensor, weight_FD: Tensor) -> Tensor:
    """x W^T, (..., D) -> (..., F), any number of rows in the way that is the faster one of these."""
    rows = x_D.numel() // x_D.shape[-1]
    if rows <= FEW:
        return projected(x_D, weight_FD)
    dtype = _dtype(x_D, weight_FD)
    if filled_count(x_D, rows, dtype) == rows:
        return F.linear(x_D, weight_FD)
    x_ND = x_D.reshape(rows, -1).to(dtype)
    product = _Filled.apply if torch.is_grad_enabled() else _filled
    out_NF = product(x_ND, weight_FD)  # type: ignore[no-untyped-call]
    return out_NF.unflatten(0, x_D.shape[:-1])  # type: ignore[no-any-return]


def projected(x_D: Tensor, weight_FD: Tensor) -> Tensor:
    """x W^T, (..., D) -> (..., F), a few rows in the way that is the faster one of these."""
    x_ND = x_D.reshape(-1, x_D.shape[-1])
    plain = torch.is_grad_enabled() or not takes_few(x_ND)
    if plain or _dtype(x_ND, weight_FD) != torch.float32:
        return F.linear(x_D, weight_FD)
    return few(x_ND, weight_FD).view(*x_D.shape[:-1], weight_FD.shape[0])


def _filled(x_ND: Tensor, weight_FD: Tensor) -> Tensor:
    return _product(x_ND, weight_FD.to(x_ND.dtype).T)


def _product(x_ND: Tensor, weight_DF: Tensor) -> Tensor:
    x_MD = filled(x_ND)
    out_MF = x_MD.new_empty(len(x_MD), weight_DF.shape[1])
    multiply(x_MD, weight_DF, out_MF, len(x_ND))
    return out_MF[: len(x_ND)]


class _Filled(torch.autograd.Function):
    """The weights are cast twice, and no copy of them is kept. Differentiable once."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_FD: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight_FD)
        return _filled(x_ND, weight_FD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NF: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_ND, weight_FD = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _product(dy_NF, weight_FD.to(dy_NF.dtype))
        if ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight_FD)
            weight_gradient(filled(dy_NF), filled(x_ND), of_weight, len(x_ND))
        return of_x, of_weight


def _dtype(x_D: Tensor, weight_FD: Tensor) -> torch.dtype:
    """Of the matmul."""
    dtype = autocast_dtype(x_D)
    return torch.promote_types(x_D.dtype, weight_FD.dtype) if dtype is None else dtype
