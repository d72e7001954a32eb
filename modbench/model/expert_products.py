"""What a bank of experts computes of rows that lie sorted by expert, and its gradients:
down(activation(up x)) of each row's own expert.

Kept for the backward pass are the rows and what comes of ``up``; the hidden layer is made again. Weights
are cast twice, and no copy of them is kept. Differentiable once. The plain twin is in the tests.

E experts, N rows, C columns of ``up``, D model width, F hidden width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from modbench.model.grouped import Grouped, Products, Slices, takes_grouped
from modbench.model.kernels import Activation, as_it_is

#: Gradients of the rows, of ``up`` and of ``down``.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def run(
    rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor, counts: Sequence[int] | Tensor, mlp: str
) -> Tensor:
    """``counts[e]`` rows of expert e, (N, D); rows beyond their sum come out as 0. Weights are cast to
    the rows' dtype. ``mlp``: as `modbench.model.config.ModelConfig` has it."""
    if torch.compiler.is_compiling():
        counts_E, sizes = (counts, []) if isinstance(counts, Tensor) else (None, list(counts))
        return _experts(rows_ND, up_ECD, down_EDF, counts_E, sizes, mlp)[0]
    products = Grouped(counts, whole=False) if isinstance(counts, Tensor) else Slices(counts)
    if not torch.is_grad_enabled():
        return _forward(rows_ND, up_ECD, down_EDF, products, mlp)[0]
    return _Experts.apply(  # type: ignore[no-any-return, no-untyped-call]
        rows_ND, up_ECD, down_EDF, products, mlp
    )


def _forward(
    rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor, products: Products, mlp: str
) -> tuple[Tensor, Tensor]:
    """What comes out, and what comes of ``up``."""
    with as_it_is(rows_ND):
        up_NC = products.forward(rows_ND, up_ECD)
        return products.forward(Activation(up_NC, mlp).forward(), down_EDF), up_NC


def _backward(
    dy_ND: Tensor,
    kept: tuple[Tensor, Tensor, Tensor, Tensor],
    products: Products,
    mlp: str,
    needed: Sequence[bool] = (True, True, True),
) -> Gradients:
    """Those that are ``needed``. ``kept``: the rows, what came of ``up``, and both weights."""
    rows_ND, up_NC, up_ECD, down_EDF = kept
    of_rows = of_up = of_down = None
    dy_ND = dy_ND.contiguous()  # grouped_mm takes no expanded one
    to_rows, to_up, to_down = needed
    with as_it_is(rows_ND):
        hidden = Activation(up_NC, mlp)
        if to_down:
            of_down = products.to_weights(dy_ND, hidden.again(), down_EDF)
        if to_rows or to_up:
            dup_NC = hidden.backward(products.to_inputs(dy_ND, down_EDF))
            if to_up:
                of_up = products.to_weights(dup_NC, rows_ND, up_ECD)
            if to_rows:
                of_rows = products.to_inputs(dup_NC, up_ECD)
    return of_rows, of_up, of_down


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor, products: Products, mlp: str
    ) -> Tensor:
        out_ND, up_NC = _forward(rows_ND, up_ECD, down_EDF, products, mlp)
        ctx.save_for_backward(rows_ND, up_NC, up_ECD, down_EDF)
        ctx.products, ctx.mlp = products, mlp
        return out_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:3]
        return *_backward(dy_ND, ctx.saved_tensors, ctx.products, ctx.mlp, needed), None, None


# To torch.compile, which knows neither slices of unknown sizes nor which way wins, one op and its own
# backward pass. ``counts_E`` is None where the host knows the ``sizes``.


@torch.library.custom_op("modbench::experts", mutates_args=())
def _experts(
    rows_ND: Tensor,
    up_ECD: Tensor,
    down_EDF: Tensor,
    counts_E: Tensor | None,
    sizes: Sequence[int],
    mlp: str,
) -> tuple[Tensor, Tensor]:
    products = _products(rows_ND, up_ECD, down_EDF, counts_E, sizes)
    return _forward(rows_ND, up_ECD, down_EDF, products, mlp)


@_experts.register_fake
def _(
    rows_ND: Tensor,
    up_ECD: Tensor,
    down_EDF: Tensor,
    counts_E: Tensor | None,
    sizes: Sequence[int],
    mlp: str,
) -> tuple[Tensor, Tensor]:
    rows = len(rows_ND)
    return rows_ND.new_empty(rows, down_EDF.shape[1]), rows_ND.new_empty(rows, up_ECD.shape[1])


@torch.library.custom_op("modbench::experts_backward", mutates_args=())
def _experts_backward(
    dy_ND: Tensor,
    rows_ND: Tensor,
    up_NC: Tensor,
    up_ECD: Tensor,
    down_EDF: Tensor,
    counts_E: Tensor | None,
    sizes: Sequence[int],
    mlp: str,
) -> tuple[Tensor, Tensor, Tensor]:
    products = _products(rows_ND, up_ECD, down_EDF, counts_E, sizes)
    return _backward(  # type: ignore[return-value]
        dy_ND, (rows_ND, up_NC, up_ECD, down_EDF), products, mlp
    )


@_experts_backward.register_fake
def _(
    dy_ND: Tensor,
    rows_ND: Tensor,
    up_NC: Tensor,
    up_ECD: Tensor,
    down_EDF: Tensor,
    counts_E: Tensor | None,
    sizes: Sequence[int],
    mlp: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return rows_ND.new_empty(rows_ND.shape), torch.empty_like(up_ECD), torch.empty_like(down_EDF)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    rows_ND, up_ECD, down_EDF, counts_E, ctx.sizes, ctx.mlp = inputs
    ctx.save_for_backward(rows_ND, output[1], up_ECD, down_EDF, counts_E)
    ctx.mark_non_differentiable(output[1])


def _differentiated(ctx: Any, dy_ND: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = _experts_backward(dy_ND, *ctx.saved_tensors, ctx.sizes, ctx.mlp)
    return *gradients, None, None, None


_experts.register_autograd(_differentiated, setup_context=_keep)


def _products(
    rows_ND: Tensor,
    up_ECD: Tensor,
    down_EDF: Tensor,
    counts_E: Tensor | None,
    sizes: Sequence[int],
) -> Products:
    if counts_E is None:
        return Slices(sizes)
    if takes_grouped(rows_ND, up_ECD, down_EDF, dtype=rows_ND.dtype):
        return Grouped(counts_E, whole=False)
    return Slices(counts_E.tolist())
