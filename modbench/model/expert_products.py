"""What a bank of experts computes of rows that lie sorted by expert, and its gradients:
down(activation(up x)) of each row's own expert.

Four ways, of `modbench.model.expert_ways` but for one: `Together` on a GPU, and in float32 where
experts have equally many rows; `modbench.model.in_one_call.InOneCall` for small experts that have not,
the start of whose matmuls shows; `AtOnce` in bfloat16 where they have, and on a CPU with units for
matrices (AMX), whose matmuls are so fast that all between them shows; else `OneByOne`. Which is faster
was measured (`nox -s perf`, "experts over one by one" and "small experts"; nothing on a GPU).

E experts, N rows, C columns of ``up``, D model width, F hidden width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from modbench.model import in_one_call, processor
from modbench.model.cross_entropy import on_gpu
from modbench.model.expert_ways import AtOnce, OneByOne, Together, Way, room
from modbench.model.grouped import Equal, Grouped, Slices, takes_grouped
from modbench.model.in_one_call import InOneCall

#: Rows of each expert: those that the host knows, those that it does not, or as many as of any other.
Counts = Sequence[int] | Tensor | None


def run(rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor, counts: Counts, mlp: str) -> Tensor:
    """``counts[e]`` rows of expert e, (N, D); rows beyond their sum come out as 0. Weights are cast to
    the rows' dtype. ``mlp``: as `modbench.model.config.ModelConfig` has it."""
    if torch.compiler.is_compiling():
        counts_E = counts if isinstance(counts, Tensor) else None
        sizes = [] if counts is None or counts_E is not None else list(counts)
        up_ECD, down_EDF = up_ECD.to(rows_ND.dtype), down_EDF.to(rows_ND.dtype)
        return _experts(rows_ND, up_ECD, down_EDF, counts_E, sizes, mlp)[0]
    way = _way(rows_ND, up_ECD, down_EDF, counts, mlp)
    if not torch.is_grad_enabled():
        return way.forward(rows_ND, up_ECD, down_EDF)
    return _Experts.apply(rows_ND, up_ECD, down_EDF, way)  # type: ignore[no-any-return, no-untyped-call]


def _way(
    rows_ND: Tensor,
    up_ECD: Tensor,
    down_EDF: Tensor,
    counts: Counts,
    mlp: str,
    *,
    compiled: bool = False,
) -> Way:
    """``compiled``: what is kept between the matmuls must be one tensor."""
    if isinstance(counts, Tensor):
        return Together(Grouped(counts, whole=False), mlp)
    equal = counts is None
    if counts is None:
        counts = [len(rows_ND) // len(up_ECD)] * len(up_ECD)
    if _together(rows_ND, equal=equal):
        return Together(Equal() if equal else Slices(counts), mlp)
    if not (equal or compiled) and in_one_call.takes(rows_ND, up_ECD, down_EDF):
        return InOneCall(counts, mlp)
    if rows_ND.dtype == torch.bfloat16 and (equal or processor.MATRIX_UNITS):
        return AtOnce(counts, mlp, equal=equal)
    return OneByOne(counts, mlp)


def _together(rows_ND: Tensor, *, equal: bool) -> bool:
    return on_gpu(rows_ND) or (equal and rows_ND.dtype == torch.float32)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor, way: Way) -> Tensor:
        out_ND, kept = way.keeping(rows_ND, up_ECD, down_EDF)
        ctx.save_for_backward(rows_ND, *kept)
        ctx.way, ctx.dtypes = way, (up_ECD.dtype, down_EDF.dtype)
        return out_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        rows_ND, *kept = ctx.saved_tensors
        gradients = ctx.way.backward(dy_ND, rows_ND, kept, ctx.dtypes, ctx.needs_input_grad[:3])
        return *gradients, None


# To torch.compile, which knows neither slices of unknown sizes nor which way wins, one op and its own
# backward pass, of weights that are cast. ``counts_E`` is None where the host knows the ``sizes``; where
# all are equal, no ``sizes`` are given.


@torch.library.custom_op("modbench::experts", mutates_args=())
def _experts(
    rows_ND: Tensor,
    up_ECD: Tensor,
    down_EDF: Tensor,
    counts_E: Tensor | None,
    sizes: Sequence[int],
    mlp: str,
) -> tuple[Tensor, Tensor]:
    way = _compiled_way(rows_ND, up_ECD, down_EDF, counts_E, sizes, mlp)
    out_ND, (between, _, _) = way.keeping(rows_ND, up_ECD, down_EDF)
    return out_ND, between


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
    together = _together(rows_ND, equal=counts_E is None and not sizes)
    between = (rows, up_ECD.shape[1]) if together else (room(rows_ND, up_ECD, down_EDF),)
    return rows_ND.new_empty(rows, down_EDF.shape[1]), rows_ND.new_empty(between)


@torch.library.custom_op("modbench::experts_backward", mutates_args=())
def _experts_backward(
    dy_ND: Tensor,
    rows_ND: Tensor,
    between: Tensor,
    up_ECD: Tensor,
    down_EDF: Tensor,
    counts_E: Tensor | None,
    sizes: Sequence[int],
    mlp: str,
) -> tuple[Tensor, Tensor, Tensor]:
    way = _compiled_way(rows_ND, up_ECD, down_EDF, counts_E, sizes, mlp)
    kept, dtypes = (between, up_ECD, down_EDF), (up_ECD.dtype, down_EDF.dtype)
    return way.backward(dy_ND, rows_ND, kept, dtypes)  # type: ignore[return-value]


@_experts_backward.register_fake
def _(
    dy_ND: Tensor,
    rows_ND: Tensor,
    between: Tensor,
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


def _compiled_way(
    rows_ND: Tensor,
    up_ECD: Tensor,
    down_EDF: Tensor,
    counts_E: Tensor | None,
    sizes: Sequence[int],
    mlp: str,
) -> Way:
    way = partial(_way, rows_ND, up_ECD, down_EDF, mlp=mlp, compiled=True)
    if counts_E is None:
        return way(sizes or None)
    if takes_grouped(rows_ND, up_ECD, down_EDF, dtype=rows_ND.dtype):
        return way(counts_E)
    return way(counts_E.tolist())
