"""A linear layer that takes any number of rows in its stride.

A CPU's bfloat16 matmuls are made anew for each number of rows (`modbench.model.grouped.ROWS`), which
takes longer than running them and is remembered in memory. Routed tokens come in another number each
time, so rows are multiplied in two parts there, the first of them whole multiples. The plain twin is
`torch.nn.Linear`.

D columns that come in, F that come out, N rows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from modbench.model.grouped import ROWS, Slices
from modbench.model.kernels import as_it_is


class Linear(nn.Linear):
    """x W^T, (..., D) -> (..., F), without a bias."""

    def __init__(self, inner: int, columns: int) -> None:
        super().__init__(inner, columns, bias=False)

    def forward(self, x_D: Tensor) -> Tensor:
        rows = x_D.numel() // x_D.shape[-1]
        dtype = _dtype(x_D, self.weight)
        if dtype != torch.bfloat16 or not x_D.is_cpu or rows < ROWS or rows % ROWS == 0:
            return super().forward(x_D)
        x_ND = x_D.reshape(rows, -1).to(dtype)
        if torch.is_grad_enabled():
            out_NF = _InParts.apply(x_ND, self.weight)  # type: ignore[no-untyped-call]
        else:
            out_NF = _in_parts(x_ND, self.weight)
        return out_NF.unflatten(0, x_D.shape[:-1])  # type: ignore[no-any-return]


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
