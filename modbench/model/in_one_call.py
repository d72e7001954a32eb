"""One more way of what `modbench.model.expert_ways` computes: each product of all experts is one call
of `torch.nn.functional.grouped_mm`, and the host starts two matmuls where it would start two of each
expert. When it is taken is said in `modbench.model.expert_products`.

E experts, N rows, M with what fills them up (`modbench.model.grouped.filled_count`), C columns of
``up``, D model width, F hidden width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import flop_counter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from modbench.counting.formulas import register_flop_formula
from modbench.model.expert_ways import ALL, Gradients, Way, filling_at_most
from modbench.model.grouped import FEW, OPS, ROWS, few, filled_count, spans, takes_few
from modbench.model.kernels import activation, activation_again, activation_backward, as_it_is

DTYPES = (torch.float32, torch.bfloat16)
#: An expert of so many products of numbers, on average, in its matmul into the hidden layer is small.
#: Far below it one call wins clearly (`nox -s perf`, "small experts"); near it, at model width 256, it
#: was within 3 % of one by one or faster, in both dtypes, with one thread and with two; at twice it,
#: mostly slower.
SMALL = 2**26
#: A matrix of so many numbers is better multiplied by a few rows of float32 by itself
#: (`modbench.model.grouped.few`) than with all others in one call.
LARGE = 2**17


def takes(rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> bool:
    """Whether `InOneCall` can compute these rows, and experts are small enough for it to be the way."""
    if not rows_ND.is_cpu or rows_ND.dtype not in DTYPES or not len(rows_ND) or torch.jit.is_tracing():
        return False
    experts, columns, inner = up_ECD.shape
    # What `grouped_mm` takes: weights as they were made, and a row's bytes are a multiple of 16.
    if not (up_ECD.is_contiguous() and down_EDF.is_contiguous()):
        return False
    whole = all(size * rows_ND.itemsize % 16 == 0 for size in (columns, inner, down_EDF.shape[2]))
    return whole and len(rows_ND) * columns * inner <= SMALL * experts


class InOneCall(Way):
    """``counts[e]`` rows of expert e. Kept is what `modbench.model.expert_ways.AtOnce` keeps."""

    def __init__(self, counts: Sequence[int], mlp: str) -> None:
        self._counts, self._mlp = list(counts), mlp

    def forward(self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> Tensor:
        if self._by_few(rows_ND, down_EDF):
            return self._few(rows_ND, up_ECD, down_EDF)
        return self._forward(rows_ND, up_ECD, down_EDF, keeps=False)[0]

    def keeping(
        self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self._forward(rows_ND, up_ECD, down_EDF, keeps=True)

    def _forward(
        self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor, *, keeps: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        tiles = _Tiles.of(rows_ND, self._counts)
        with as_it_is(rows_ND):
            up_ECD, down_EDF = up_ECD.to(rows_ND.dtype), down_EDF.to(rows_ND.dtype)
            up_MC = tiles.product(tiles.put(rows_ND), up_ECD.transpose(1, 2))
            hidden_MF = up_MC.new_empty(len(up_MC), down_EDF.shape[2])
            kept_MF = torch.empty_like(hidden_MF) if keeps else hidden_MF
            hidden_MF = activation(up_MC, self._mlp, kept_NF=kept_MF, out_NF=hidden_MF)
            out_MD = tiles.product(hidden_MF, down_EDF.transpose(1, 2))
            return tiles.taken(out_MD, len(rows_ND)), (up_MC, kept_MF, up_ECD, down_EDF)

    def backward(
        self,
        dy_ND: Tensor,
        rows_ND: Tensor,
        kept: tuple[Tensor, ...],
        dtypes: tuple[torch.dtype, torch.dtype],
        needed: Sequence[bool] = ALL,
    ) -> Gradients:
        up_MC, kept_MF, up_ECD, down_EDF = kept
        of_rows = of_up = of_down = None
        to_rows, to_up, to_down = needed
        tiles = _Tiles.of(rows_ND, self._counts)
        with as_it_is(rows_ND):
            dy_MD, hidden_MF = tiles.put(dy_ND), torch.empty_like(kept_MF)
            if to_down:
                again_MF = activation_again(up_MC, self._mlp, kept_NF=kept_MF, out_NF=hidden_MF)
                of_down = tiles.product(dy_MD.T, again_MF).to(dtypes[1])
            del hidden_MF
            if to_rows or to_up:
                dhidden_MF = tiles.product(dy_MD, down_EDF)
                dup_MC = torch.empty_like(up_MC)
                activation_backward(dhidden_MF, up_MC, self._mlp, kept_NF=kept_MF, out_NC=dup_MC)
                del dhidden_MF
                if to_up:
                    of_up = tiles.product(dup_MC.T, tiles.put(rows_ND)).to(dtypes[0])
                if to_rows:
                    of_rows = tiles.taken(tiles.product(dup_MC, up_ECD), len(rows_ND))
        return of_rows, of_up, of_down

    def _by_few(self, rows_ND: Tensor, down_EDF: Tensor) -> bool:
        return max(self._counts) <= FEW and down_EDF[0].numel() >= LARGE and takes_few(rows_ND[:1])

    def _few(self, rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> Tensor:
        with as_it_is(rows_ND):
            up_NC = self._by_expert(rows_ND, up_ECD)
            hidden_NF = up_NC.new_empty(len(up_NC), down_EDF.shape[2])
            hidden_NF = activation(up_NC, self._mlp, kept_NF=hidden_NF, out_NF=hidden_NF)
            return self._by_expert(hidden_NF, down_EDF)

    def _by_expert(self, x_ND: Tensor, weight_EFD: Tensor) -> Tensor:
        out_NF = x_ND.new_empty(len(x_ND), weight_EFD.shape[1])
        out_NF[sum(self._counts) :] = 0
        for expert, rows in spans(self._counts):
            if rows.start < rows.stop:
                out_NF[rows] = few(x_ND[rows], weight_EFD[expert].to(x_ND.dtype))
        return out_NF


@dataclass(frozen=True)
class _Tiles:
    """Rows of each expert, filled up to whole tiles. ``place_N``: where each of ``count`` rows lies
    among all ``most``, the last of which may be nobody's and between matmuls hold anything; None:
    nothing fills them up."""

    count: int
    most: int
    ends_E: Tensor
    place_N: Tensor | None

    @classmethod
    def of(cls, like: Tensor, counts: Sequence[int]) -> "_Tiles":
        sizes, count = [filled_count(like, number) for number in counts], sum(counts)
        ends_E = torch.tensor(list(accumulate(sizes)), dtype=torch.int32, device=like.device)
        if filled_count(like, ROWS + 1) == ROWS + 1 or count <= ROWS:
            return cls(count, count, ends_E, None)
        filling = [size - number for size, number in zip(sizes, counts, strict=True)]
        before_E = torch.tensor([0, *accumulate(filling[:-1])], device=like.device)
        counts_E = torch.tensor(counts, device=like.device)
        place_N = torch.arange(count, device=like.device)
        place_N = place_N.add_(before_E.repeat_interleave(counts_E, output_size=count))
        # As many whoever has how many: plans reckon with even ones.
        return cls(count, count + filling_at_most(like.dtype, count, len(counts)), ends_E, place_N)

    def put(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (M, D), what fills them up 0; without rows that are no expert's."""
        x_ND = x_ND[: self.count]
        if self.place_N is None:
            # Not `contiguous`, to which any strides of one row or none are right: not to `grouped_mm`.
            as_made = x_ND.stride() == (x_ND.shape[1], 1)
            return x_ND if as_made else x_ND.clone(memory_format=torch.contiguous_format)
        return x_ND.new_zeros(self.most, x_ND.shape[1]).index_copy_(0, self.place_N, x_ND)

    def taken(self, x_MD: Tensor, rows: int) -> Tensor:
        """The way back: (N, D), rows that are no expert's as 0."""
        x_ND = x_MD if self.place_N is None else x_MD.index_select(0, self.place_N)
        if rows == self.count:
            return x_ND
        return torch.cat((x_ND, x_ND.new_zeros(rows - self.count, x_ND.shape[1])))

    def product(self, one: Tensor, other: Tensor) -> Tensor:
        """Each row of (M, D) by its expert's matrix of (E, D, F); or of each expert the product (F, D)
        of its columns of (F, M) and its rows of (M, D). Who counts is told how many rows are real."""
        grouped: Callable[..., Tensor] = partial(F.grouped_mm, offs=self.ends_E)
        if is_in_torch_dispatch_mode():
            grouped = partial(torch.ops.modbench.filled_grouped_mm, ends=self.ends_E, count=self.count)
        return grouped(one, other)


# An op of its own: see `modbench.model.grouped`.
OPS.define("filled_grouped_mm(Tensor one, Tensor other, Tensor ends, int count) -> Tensor")


@torch.library.impl(OPS, "filled_grouped_mm", "CPU")
def _filled_grouped_mm(one: Tensor, other: Tensor, ends: Tensor, count: int) -> Tensor:
    return F.grouped_mm(one, other, offs=ends)


@torch.library.register_fake("modbench::filled_grouped_mm", lib=OPS)
def _(one: Tensor, other: Tensor, ends: Tensor, count: int) -> Tensor:
    experts = () if other.dim() == 3 else (len(ends),)
    return one.new_empty(*experts, one.shape[0], other.shape[-1])


def _flops(given: Mapping[str, Any], result: Any) -> int:
    return _product_flops(given["one"].shape, given["other"].shape, (), given["count"])


def _product_flops(
    one: Sequence[int], other: Sequence[int], ends: Sequence[int], count: int, **_: Any
) -> int:
    inner = one[1] if len(other) == 3 else one[0]
    return 2 * count * inner * other[-1]


register_flop_formula("modbench::filled_grouped_mm", _flops)
flop_counter.register_flop_formula(torch.ops.modbench.filled_grouped_mm)(_product_flops)
