"""A linear layer that takes any number of rows in its stride.

A CPU's bfloat16 matmuls are made anew for each number of rows (`modbench.model.grouped.ROWS`), which
takes longer than running them and is remembered in memory. Routed tokens come in another number each
time, so rows are multiplied in two parts there, the first of them whole multiples. In float32 a few
rows, as when sequences are decoded, are multiplied from the other side, which is faster (`nox -s perf`,
"linear layers of a few rows over torch's"). The plain twin is `torch.nn.Linear`.

D columns that come in, F that come out, N rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from modbench.model.grouped import FEW, ROWS, Slices, few, takes_few
from modbench.model.kernels import as_it_is


class Linear(nn.Linear):
    """x W^T, (..., D) -> (..., F), without a bias."""

    def __init__(self, inner: int, columns: int) -> None:
        super().__init__(inner, columns, bias=False)

    def forward(self, x_D: Tensor) -> Tensor:
        rows = x_D.numel() // x_D.shape[-1]
        if rows <= FEW:
            return projected(x_D, self.weight)
        dtype = _dtype(x_D, self.weight)
        if dtype != torch.bfloat16 or not x_D.is_cpu or rows < ROWS or rows % ROWS == 0:
            return super().forward(x_D)
        x_ND = x_D.reshape(rows, -1).to(dtype)
        if torch.is_grad_enabled():
            out_NF = _InParts.apply(x_ND, self.weight)  # type: ignore[no-untyped-call]
        else:
            out_NF = _in_parts(x_ND, self.weight)
        return out_NF.unflatten(0, x_D.shape[:-1])  # type: ignore[no-any-return]


def projected(x_D: Tensor, weight_FD: Tensor) -> Tensor:
    """x W^T, (..., D) -> (..., F), a few rows in the way that is the faster one of these."""
    x_ND = x_D.reshape(-1, x_D.shape[-1])
    plain = torch.is_grad_enabled() or not takes_few(x_ND)
    if plain or _dtype(x_ND, weight_FD) != torch.float32:
        return F.linear(x_D, weight_FD)
    return few(x_ND, weight_FD).unflatten(0, x_D.shape[:-1])


def _in_parts(x_ND: Tensor, weight_FD: Tensor) -> Tensor:
    with as_it_is(x_ND):
        return Slices([len(x_ND)]).forward(x_ND, weight_FD[None])


class _InParts(torch.autograd.Function):
    """The weights are cast twice, and no copy of them is kept. Differentiable once."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_FD: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight_FD)
        return _in_parts(x_ND, weight_FD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NF: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_ND, weight_FD = ctx.saved_tensors
        slices, of_x, of_weight = Slices([len(x_ND)]), None, None
        with as_it_is(x_ND):
            if ctx.needs_input_grad[0]:
                of_x = slices.to_inputs(dy_NF, weight_FD[None])
            if ctx.needs_input_grad[1]:
                of_weight = slices.to_weights(dy_NF, x_ND, weight_FD[None])[0]
        return of_x, of_weight


def _dtype(x_D: Tensor, weight_FD: Tensor) -> torch.dtype:
    """Of the matmul."""
    if x_D.is_cpu and torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return torch.promote_types(x_D.dtype, weight_FD.dtype)
