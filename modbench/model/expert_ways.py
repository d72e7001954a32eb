"""What a bank of experts computes of rows that lie sorted by expert, and its gradients, in three ways.

`Together` computes all experts at a time. Kept for the backward pass are the rows and what comes of
``up``; the hidden layer is made again, and weights are cast twice. `OneByOne` computes one expert at a
time, from its rows to its results, so that what lies between is still in the processor's cache when it
is needed. `AtOnce` computes all at a time, each expert's rows filled up to whole tiles. These two keep
what a dense MLP under autocast keeps: cast weights and silu(gate), too. Which is taken when is said in
`modbench.model.expert_products`. Differentiable once. The plain twin is in the tests.

E experts, N rows, M with what fills them up (`modbench.model.grouped.filled`), C columns of ``up``,
D model width, F hidden width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from modbench.model.grouped import (
    ROWS,
    Products,
    filled,
    filled_count,
    multiply,
    spans,
    weight_gradient,
    whole_tiles,
)
from modbench.model.kernels import activation, activation_again, activation_backward, as_it_is

#: Gradients of the rows, of ``up`` and of ``down``.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
ALL = (True, True, True)
#: Dtypes in which what lies between the matmuls of one expert lies feature by feature, for which matmuls
#: into and out of it are faster on a CPU (`nox -s perf`, "hidden layer by feature over by row").
BY_FEATURE: tuple[torch.dtype, ...] = (torch.float32,)


class Way(ABC):
    """How the rows of all experts are computed."""

    @abstractmethod
    def forward(self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> Tensor:
        """Where no backward pass comes."""

    @abstractmethod
    def keeping(
        self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same, and what `backward` takes besides the rows: what is between the matmuls, and last
        both weights as they were multiplied, or as they are."""

    @abstractmethod
    def backward(
        self,
        dy_ND: Tensor,
        rows_ND: Tensor,
        kept: tuple[Tensor, ...],
        dtypes: tuple[torch.dtype, torch.dtype],
        needed: Sequence[bool] = ALL,
    ) -> Gradients:
        """Those that are ``needed``, the weights' in their own ``dtypes``."""


class Together(Way):
    """All experts at a time."""

    def __init__(self, products: Products, mlp: str) -> None:
        self._products, self._mlp = products, mlp

    def forward(self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> Tensor:
        return self.keeping(rows_ND, up_ECD, down_EDF)[0]

    def keeping(
        self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        with as_it_is(rows_ND):
            up_NC = self._products.forward(rows_ND, up_ECD)
            hidden_NF = up_NC.new_empty(len(up_NC), down_EDF.shape[2])
            hidden_NF = activation(up_NC, self._mlp, kept_NF=hidden_NF, out_NF=hidden_NF)
            return self._products.forward(hidden_NF, down_EDF), (up_NC, up_ECD, down_EDF)

    def backward(
        self,
        dy_ND: Tensor,
        rows_ND: Tensor,
        kept: tuple[Tensor, ...],
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
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
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
        kept: tuple[Tensor, ...],
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


class AtOnce(Way):
    """``counts[e]`` rows of expert e, all experts at a time; ``equal``: as many as of any other, by one
    bmm if they fill their tiles."""

    def __init__(self, counts: Sequence[int], mlp: str, *, equal: bool) -> None:
        self._counts, self._mlp, self._equal = list(counts), mlp, equal

    def forward(self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> Tensor:
        return self.keeping(rows_ND, up_ECD, down_EDF)[0]

    def keeping(
        self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        with as_it_is(rows_ND):
            up_ECD, down_EDF = up_ECD.to(rows_ND.dtype), down_EDF.to(rows_ND.dtype)
            between = rows_ND.new_empty(room(rows_ND, up_ECD, down_EDF))
            up_MC, kept_MF = self._between(between, up_ECD, down_EDF)
            self._multiply(self._tiled(rows_ND), up_ECD.transpose(1, 2), up_MC)
            hidden_MF = self._empty(rows_ND, down_EDF.shape[2])
            hidden_MF = activation(up_MC, self._mlp, kept_NF=kept_MF, out_NF=hidden_MF)
            out_MD = self._empty(rows_ND, down_EDF.shape[1])
            self._multiply(hidden_MF, down_EDF.transpose(1, 2), out_MD)
            return self._untiled(out_MD, len(rows_ND)), (between, up_ECD, down_EDF)

    def backward(
        self,
        dy_ND: Tensor,
        rows_ND: Tensor,
        kept: tuple[Tensor, ...],
        dtypes: tuple[torch.dtype, torch.dtype],
        needed: Sequence[bool] = ALL,
    ) -> Gradients:
        between, up_ECD, down_EDF = kept
        of_rows = of_up = of_down = None
        to_rows, to_up, to_down = needed
        with as_it_is(rows_ND):
            up_MC, kept_MF = self._between(between, up_ECD, down_EDF)
            dy_MD, hidden_MF = self._tiled(dy_ND), self._empty(dy_ND, down_EDF.shape[2])
            if to_down:
                again_MF = activation_again(up_MC, self._mlp, kept_NF=kept_MF, out_NF=hidden_MF)
                of_down = self._gradient(dy_MD, again_MF, torch.empty_like(down_EDF, dtype=dtypes[1]))
            if to_rows or to_up:
                self._multiply(dy_MD, down_EDF, hidden_MF)
                dup_MC = self._empty(dy_ND, up_ECD.shape[1])
                activation_backward(hidden_MF, up_MC, self._mlp, kept_NF=kept_MF, out_NC=dup_MC)
                del hidden_MF
                if to_up:
                    rows_MD = self._tiled(rows_ND)
                    of_up = self._gradient(dup_MC, rows_MD, torch.empty_like(up_ECD, dtype=dtypes[0]))
                if to_rows:
                    of_rows_MD = self._empty(dy_ND, up_ECD.shape[2])
                    self._multiply(dup_MC, up_ECD, of_rows_MD)
                    of_rows = self._untiled(of_rows_MD, len(rows_ND))
        return of_rows, of_up, of_down

    def _sizes(self, like: Tensor) -> list[int]:
        """Rows of each expert with what fills them up."""
        return [filled_count(like, count) for count in self._counts]

    def _empty(self, like: Tensor, columns: int) -> Tensor:
        """Memory for (M, columns): of unequal experts as much whatever their rows are, for plans reckon
        with even ones."""
        most = rows = sum(self._sizes(like))
        if not self._as_they_are(like):
            real = sum(self._counts)
            most = real + filling_at_most(like.dtype, real, len(self._counts))
        return like.new_empty(most, columns)[:rows]

    def _as_they_are(self, x: Tensor) -> bool:
        """Whether nothing fills them up; of more than a few unequal ones only by accident."""
        few_or_equal = self._equal or sum(self._counts) <= ROWS
        return few_or_equal and self._counts == self._sizes(x)

    def _in_one(self, like: Tensor) -> bool:
        return self._equal and self._counts[0] > 0 and self._as_they_are(like)

    def _tiled(self, x_ND: Tensor) -> Tensor:
        """Each expert's rows filled up, (M, D); without rows that are no expert's."""
        sizes, real = self._sizes(x_ND), sum(self._counts)
        if self._as_they_are(x_ND):
            return x_ND[:real]
        x_MD = self._empty(x_ND, x_ND.shape[1])
        for count, one_MD, one_ND in zip(
            self._counts, x_MD.split(sizes), x_ND[:real].split(self._counts), strict=True
        ):
            one_MD[:count] = one_ND
            one_MD[count:] = 0
        return x_MD

    def _untiled(self, x_MD: Tensor, rows: int) -> Tensor:
        """The way back: (N, D), rows that are no expert's as 0."""
        sizes, real = self._sizes(x_MD), sum(self._counts)
        if self._as_they_are(x_MD) and real == rows:
            return x_MD
        x_ND = x_MD.new_empty(rows, x_MD.shape[1])
        x_ND[real:] = 0
        for count, one_MD, one_ND in zip(
            self._counts, x_MD.split(sizes), x_ND[:real].split(self._counts), strict=True
        ):
            one_ND.copy_(one_MD[:count])
        return x_ND

    def _multiply(self, x_MD: Tensor, weight_EDF: Tensor, out_MF: Tensor) -> None:
        """``out_MF`` becomes each row by its expert's matrix."""
        if self._in_one(x_MD):
            x_EnD, out_EnF = (t.unflatten(0, (len(self._counts), -1)) for t in (x_MD, out_MF))
            if torch.jit.is_tracing():  # who counts a trace takes no third operand
                out_EnF.copy_(torch.bmm(x_EnD, weight_EDF))
            else:
                torch.bmm(x_EnD, weight_EDF, out=out_EnF)
            return
        sizes = self._sizes(x_MD)
        parts = zip(self._counts, x_MD.split(sizes), weight_EDF, out_MF.split(sizes), strict=True)
        for count, one_MD, weight_DF, one_MF in parts:
            if count:
                multiply(one_MD, weight_DF, one_MF, count)

    def _gradient(self, dy_MF: Tensor, x_MD: Tensor, out_EFD: Tensor) -> Tensor:
        """``out_EFD``, which has become the gradient of each expert's matrix."""
        if self._in_one(x_MD):
            each = (len(self._counts), -1)
            out_EFD.copy_(torch.bmm(dy_MF.unflatten(0, each).transpose(1, 2), x_MD.unflatten(0, each)))
            return out_EFD
        sizes = self._sizes(x_MD)
        parts = zip(self._counts, dy_MF.split(sizes), x_MD.split(sizes), out_EFD, strict=True)
        for count, one_MF, one_MD, out_FD in parts:
            weight_gradient(one_MF, one_MD, out_FD, count)
        return out_EFD

    def _between(self, between: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> tuple[Tensor, Tensor]:
        """All experts' (M, C) out of ``up`` and (M, F) of the activation."""
        rows, into, out = sum(self._sizes(between)), up_ECD.shape[1], down_EDF.shape[2]
        up, kept = between[: rows * (into + out)].split((rows * into, rows * out))
        return up.view(rows, into), kept.view(rows, out)


def room(rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> int:
    """Numbers between the matmuls of these rows, whoever their experts are: at most."""
    most = len(rows_ND) + filling_at_most(rows_ND.dtype, len(rows_ND), len(up_ECD))
    return most * (up_ECD.shape[1] + down_EDF.shape[2])


def filling_at_most(dtype: torch.dtype, rows: int, experts: int) -> int:
    """What fills up ``rows`` of so many experts, whoever has how many: at most."""
    if dtype in BY_FEATURE:
        return (ROWS - 1) * experts
    # Whoever has no more than a tile is not filled up.
    return (ROWS - 1) * min(experts, rows // (ROWS + 1)) if dtype == torch.bfloat16 else 0


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
