"""What a bank of experts computes of rows that lie sorted by expert, and its gradients:
down(activation(up x)) of each row's own expert.

Two ways. On a GPU, and in float32 where experts have equally many rows, all experts at a time; kept for
the backward pass are the rows and what comes of ``up``, the hidden layer is made again, and weights are
cast twice. Else one expert at a time, from its rows to its results, so that what lies between is still
in the processor's cache when it is needed; what is kept is what a dense MLP under autocast keeps: cast
weights and silu(gate), too. Which is faster was measured (`nox -s perf`, "experts all together over one
by one"; nothing on a GPU). Differentiable once. The plain twin is in the tests.

E experts, N rows, M of one expert with what fills them up (`modbench.model.grouped.filled`), C columns
of ``up``, D model width, F hidden width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from modbench.model.cross_entropy import on_gpu
from modbench.model.grouped import (
    ROWS,
    Equal,
    Grouped,
    Products,
    Slices,
    filled,
    filled_count,
    multiply,
    spans,
    takes_grouped,
    weight_gradient,
    whole_tiles,
)
from modbench.model.kernels import activation, activation_again, activation_backward, as_it_is

#: Gradients of the rows, of ``up`` and of ``down``.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
ALL = (True, True, True)
#: Rows of each expert: those that the host knows, those that it does not, or as many as of any other.
Counts = Sequence[int] | Tensor | None
#: Dtypes in which what lies between the matmuls of one expert lies feature by feature, for which matmuls
#: into and out of it are faster on a CPU (`nox -s perf`, "hidden layer by feature over by row").
BY_FEATURE: tuple[torch.dtype, ...] = (torch.float32,)


def run(rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor, counts: Counts, mlp: str) -> Tensor:
    """``counts[e]`` rows of expert e, (N, D); rows beyond their sum come out as 0. Weights are cast to
    the rows' dtype. ``mlp``: as `modbench.model.config.ModelConfig` has it."""
    if torch.compiler.is_compiling():
        counts_E = counts if isinstance(counts, Tensor) else None
        sizes = [] if counts is None or counts_E is not None else list(counts)
        up_ECD, down_EDF = up_ECD.to(rows_ND.dtype), down_EDF.to(rows_ND.dtype)
        return _experts(rows_ND, up_ECD, down_EDF, counts_E, sizes, mlp)[0]
    way = _way(rows_ND, counts, len(up_ECD), mlp)
    if not torch.is_grad_enabled():
        return way.forward(rows_ND, up_ECD, down_EDF)
    return _Experts.apply(rows_ND, up_ECD, down_EDF, way)  # type: ignore[no-any-return, no-untyped-call]


class Way(ABC):
    """How the rows of all experts are computed."""

    @abstractmethod
    def forward(self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> Tensor:
        """Where no backward pass comes."""

    @abstractmethod
    def keeping(
        self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The same, and what `backward` takes besides the rows: what is between the matmuls, and both
        weights as they were multiplied, or as they are."""

    @abstractmethod
    def backward(
        self,
        dy_ND: Tensor,
        rows_ND: Tensor,
        kept: tuple[Tensor, Tensor, Tensor],
        dtypes: tuple[torch.dtype, torch.dtype],
        needed: Sequence[bool] = ALL,
    ) -> Gradients:
        """Those that are ``needed``, the weights' in their own ``dtypes``."""


def _way(rows_ND: Tensor, counts: Counts, experts: int, mlp: str) -> Way:
    if isinstance(counts, Tensor):
        return Together(Grouped(counts, whole=False), mlp)
    if counts is None:
        if _together(rows_ND, equal=True):
            return Together(Equal(), mlp)
        counts = [len(rows_ND) // experts] * experts
    elif _together(rows_ND, equal=False):
        return Together(Slices(counts), mlp)
    return OneByOne(counts, mlp)


def _together(rows_ND: Tensor, *, equal: bool) -> bool:
    return on_gpu(rows_ND) or (equal and rows_ND.dtype == torch.float32)


class Together(Way):
    """All experts at a time."""

    def __init__(self, products: Products, mlp: str) -> None:
        self._products, self._mlp = products, mlp

    def forward(self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> Tensor:
        return self.keeping(rows_ND, up_ECD, down_EDF)[0]

    def keeping(
        self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        with as_it_is(rows_ND):
            up_NC = self._products.forward(rows_ND, up_ECD)
            hidden_NF = up_NC.new_empty(len(up_NC), down_EDF.shape[2])
            hidden_NF = activation(up_NC, self._mlp, kept_NF=hidden_NF, out_NF=hidden_NF)
            return self._products.forward(hidden_NF, down_EDF), (up_NC, up_ECD, down_EDF)

    def backward(
        self,
        dy_ND: Tensor,
        rows_ND: Tensor,
        kept: tuple[Tensor, Tensor, Tensor],
        dtypes: tuple[torch.dtype, torch.dtype],
        needed: Sequence[bool] = ALL,
    ) -> Gradients:
        up_NC, up_ECD, down_EDF = kept
        of_rows = of_up = of_down = None
        to_rows, to_up, to_down = needed
        dy_ND = dy_ND.contiguous()  # grouped_mm takes no expanded one
        with as_it_is(rows_ND):
            dup_NC = torch.empty_like(up_NC)
            kept_NF = (
                dup_NC[:, -down_EDF.shape[2] :] if self._mlp == "swiglu" else torch.empty_like(up_NC)
            )
            hidden_NF = up_NC.new_empty(len(up_NC), down_EDF.shape[2])
            hidden_NF = activation(up_NC, self._mlp, kept_NF=kept_NF, out_NF=hidden_NF)
            if to_down:
                of_down = self._products.to_weights(dy_ND, hidden_NF, down_EDF)
            del hidden_NF
            if to_rows or to_up:
                gradient_NF = self._products.to_inputs(dy_ND, down_EDF)
                activation_backward(gradient_NF, up_NC, self._mlp, kept_NF=kept_NF, out_NC=dup_NC)
                del gradient_NF
                if to_up:
                    of_up = self._products.to_weights(dup_NC, rows_ND, up_ECD)
                if to_rows:
                    of_rows = self._products.to_inputs(dup_NC, up_ECD)
        return of_rows, of_up, of_down


class OneByOne(Way):
    """``counts[e]`` rows of expert e, expert by expert."""

    def __init__(self, counts: Sequence[int], mlp: str) -> None:
        self._counts, self._mlp = list(counts), mlp

    def forward(self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> Tensor:
        out_ND, dtype = self._empty(rows_ND, down_EDF), rows_ND.dtype
        with as_it_is(rows_ND):
            for expert, rows in spans(self._counts):
                count = rows.stop - rows.start
                if count:
                    up_MC = _laid(rows_ND, count, up_ECD.shape[1])
                    hidden_MF = _laid(rows_ND, count, down_EDF.shape[2])
                    multiply(filled(rows_ND[rows]), up_ECD[expert].to(dtype).T, up_MC, count)
                    hidden_MF = activation(up_MC, self._mlp, kept_NF=hidden_MF, out_NF=hidden_MF)
                    multiply(hidden_MF, down_EDF[expert].to(dtype).T, out_ND[rows], count)
        return out_ND

    def keeping(
        self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        out_ND = self._empty(rows_ND, down_EDF)
        with as_it_is(rows_ND):
            up_ECD, down_EDF = up_ECD.to(rows_ND.dtype), down_EDF.to(rows_ND.dtype)
            between = rows_ND.new_empty(room(rows_ND, up_ECD, down_EDF))
            laid = self._between(between, up_ECD, down_EDF)
            for (expert, rows), (up_MC, kept_MF) in zip(spans(self._counts), laid, strict=True):
                count = rows.stop - rows.start
                if count:
                    multiply(filled(rows_ND[rows]), up_ECD[expert].T, up_MC, count)
                    hidden_MF = _laid(rows_ND, count, down_EDF.shape[2])
                    hidden_MF = activation(up_MC, self._mlp, kept_NF=kept_MF, out_NF=hidden_MF)
                    multiply(hidden_MF, down_EDF[expert].T, out_ND[rows], count)
        return out_ND, (between, up_ECD, down_EDF)

    def backward(
        self,
        dy_ND: Tensor,
        rows_ND: Tensor,
        kept: tuple[Tensor, Tensor, Tensor],
        dtypes: tuple[torch.dtype, torch.dtype],
        needed: Sequence[bool] = ALL,
    ) -> Gradients:
        between, up_ECD, down_EDF = kept
        to_rows, to_up, to_down = needed
        of_rows = self._empty(rows_ND, down_EDF) if to_rows else None
        of_up = torch.empty_like(up_ECD, dtype=dtypes[0]) if to_up else None
        of_down = torch.empty_like(down_EDF, dtype=dtypes[1]) if to_down else None
        with as_it_is(rows_ND):
            laid = self._between(between, up_ECD, down_EDF)
            for (expert, rows), (up_MC, kept_MF) in zip(spans(self._counts), laid, strict=True):
                count, dy_MD = rows.stop - rows.start, filled(dy_ND[rows])
                hidden_MF = _laid(rows_ND, count, down_EDF.shape[2])
                if of_down is not None:
                    again_MF = activation_again(up_MC, self._mlp, kept_NF=kept_MF, out_NF=hidden_MF)
                    weight_gradient(dy_MD, again_MF, of_down[expert], count)
                if not (to_rows or to_up):
                    continue
                multiply(dy_MD, down_EDF[expert], hidden_MF, count)
                dup_MC = _laid(rows_ND, count, up_ECD.shape[1])
                activation_backward(hidden_MF, up_MC, self._mlp, kept_NF=kept_MF, out_NC=dup_MC)
                if of_up is not None:
                    weight_gradient(dup_MC, filled(rows_ND[rows]), of_up[expert], count)
                if of_rows is not None:
                    multiply(dup_MC, up_ECD[expert], of_rows[rows], count)
        return of_rows, of_up, of_down

    def _empty(self, rows_ND: Tensor, down_EDF: Tensor) -> Tensor:
        out_ND = rows_ND.new_empty(len(rows_ND), down_EDF.shape[1])
        out_ND[sum(self._counts) :] = 0
        return out_ND

    def _between(self, between: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each expert's (M, C) out of ``up`` and (M, F) of the activation."""
        found, end = [], 0
        for count in self._counts:
            pair = []
            for columns in (up_ECD.shape[1], down_EDF.shape[2]):
                stride = _stride(between, count)
                first, end = end, end + stride * columns
                pair.append(_as_laid(between[first:end], count, columns))
            found.append((pair[0], pair[1]))
        return found


def room(rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> int:
    """Numbers between the matmuls of these rows, whoever their experts are: at most."""
    most = len(rows_ND)
    if rows_ND.dtype in (*BY_FEATURE, torch.bfloat16):
        most += (ROWS - 1) * len(up_ECD)
    return most * (up_ECD.shape[1] + down_EDF.shape[2])


def _stride(like: Tensor, count: int) -> int:
    if like.dtype in BY_FEATURE:
        return whole_tiles(count)
    return filled_count(like, count)


def _laid(like: Tensor, count: int, columns: int) -> Tensor:
    """Memory for (M, columns) of ``count`` rows."""
    return _as_laid(like.new_empty(_stride(like, count) * columns), count, columns)


def _as_laid(flat: Tensor, count: int, columns: int) -> Tensor:
    if flat.dtype in BY_FEATURE:
        return flat.view(columns, _stride(flat, count))[:, :count].T
    return flat.view(-1, columns)


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
    experts = len(up_ECD)
    if counts_E is None:
        return _way(rows_ND, sizes or None, experts, mlp)
    if takes_grouped(rows_ND, up_ECD, down_EDF, dtype=rows_ND.dtype):
        return _way(rows_ND, counts_E, experts, mlp)
    return _way(rows_ND, counts_E.tolist(), experts, mlp)
