"""Matmuls of rows that lie sorted by expert, each expert's with a matrix of its own: two ways.

`Slices` multiplies expert by expert. `Grouped` is one call of `torch.nn.functional.grouped_mm`, and
needs no host that knows how many rows an expert has. `Products` is what both do.

Which wins was measured (`nox -s perf`, "grouped_mm over slices"): on a CPU the slices, in float32 and in
bfloat16. A GPU's host would have to wait for the counts to slice by them.

E experts, N rows, F columns that come out, D columns that come in.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

#: A CPU's bfloat16 kernels are made anew for each number of rows, which takes as long as running them:
#: multiples of this are taken by themselves, and what remains, so that there are few.
ROWS = 16


class Products(ABC):
    """What belongs to no expert (rows at the end) comes out as 0."""

    @abstractmethod
    def forward(self, x_ND: Tensor, weight_EFD: Tensor) -> Tensor:
        """Each row by its expert's matrix, (N, F). The matrices are cast to the rows' dtype."""

    @abstractmethod
    def to_inputs(self, dy_NF: Tensor, weight_EFD: Tensor) -> Tensor:
        """The gradient of `forward` in its rows, (N, D)."""

    @abstractmethod
    def to_weights(self, dy_NF: Tensor, x_ND: Tensor, weight_EFD: Tensor) -> Tensor:
        """The gradient of `forward` in ``weight_EFD``, in its dtype."""


class Slices(Products):
    """``counts[e]`` rows of expert e, as the host knows them."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._counts = list(counts)

    def forward(self, x_ND: Tensor, weight_EFD: Tensor) -> Tensor:
        out_NF = self._empty(x_ND, weight_EFD.shape[1])
        for expert, rows in self._slices(x_ND):
            weight_FD = weight_EFD[expert].to(x_ND.dtype)
            for some in rows:
                _product(x_ND[some], weight_FD.T, out_NF[some])
        return out_NF

    def to_inputs(self, dy_NF: Tensor, weight_EFD: Tensor) -> Tensor:
        out_ND = self._empty(dy_NF, weight_EFD.shape[2])
        for expert, rows in self._slices(dy_NF):
            weight_FD = weight_EFD[expert].to(dy_NF.dtype)
            for some in rows:
                _product(dy_NF[some], weight_FD, out_ND[some])
        return out_ND

    def to_weights(self, dy_NF: Tensor, x_ND: Tensor, weight_EFD: Tensor) -> Tensor:
        out_EFD = torch.empty_like(weight_EFD)
        for expert, rows in self._slices(x_ND):
            out_FD = out_EFD[expert]
            if not rows:
                out_FD.zero_()
            same = out_FD.dtype == x_ND.dtype
            product_FD = out_FD if same or not rows else torch.empty_like(out_FD, dtype=x_ND.dtype)
            for number, some in enumerate(rows):
                if same and number:
                    out_FD.addmm_(dy_NF[some].T, x_ND[some])
                    continue
                torch.mm(dy_NF[some].T, x_ND[some], out=product_FD)
                if not same:
                    out_FD.add_(product_FD) if number else out_FD.copy_(product_FD)
        return out_EFD

    def _slices(self, x_ND: Tensor) -> Iterator[tuple[int, list[slice]]]:
        """Each expert's rows, in the parts in which they are multiplied."""
        apart = x_ND.dtype == torch.bfloat16 and not x_ND.is_cuda
        first = 0
        for expert, count in enumerate(self._counts):
            last = first + count
            middle = last - count % ROWS if apart else last
            parts = [slice(first, middle), slice(middle, last)]
            yield expert, [part for part in parts if part.stop > part.start]
            first = last

    def _empty(self, x_ND: Tensor, columns: int) -> Tensor:
        out_NF = x_ND.new_empty(len(x_ND), columns)
        out_NF[sum(self._counts) :] = 0
        return out_NF


def _product(one: Tensor, other: Tensor, out: Tensor) -> None:
    if torch.jit.is_tracing():  # who counts a trace takes no third operand
        out.copy_(torch.mm(one, other))
    else:
        torch.mm(one, other, out=out)


class Grouped(Products):
    """``counts_E`` (E,) rows of each expert, wherever they are known; ``whole``: they are all rows."""

    #: What `grouped_mm` takes on a GPU: a row's bytes are a multiple of 16.
    DTYPES: ClassVar = (torch.bfloat16,)

    def __init__(self, counts_E: Tensor, *, whole: bool) -> None:
        self._ends_E = counts_E.cumsum(0).to(torch.int32)
        self._whole = whole

    def forward(self, x_ND: Tensor, weight_EFD: Tensor) -> Tensor:
        weight_EDF = weight_EFD.to(x_ND.dtype).transpose(1, 2)
        return self._none_beyond(F.grouped_mm(x_ND, weight_EDF, offs=self._ends_E))

    def to_inputs(self, dy_NF: Tensor, weight_EFD: Tensor) -> Tensor:
        return self._none_beyond(F.grouped_mm(dy_NF, weight_EFD.to(dy_NF.dtype), offs=self._ends_E))

    def to_weights(self, dy_NF: Tensor, x_ND: Tensor, weight_EFD: Tensor) -> Tensor:
        product_EFD = F.grouped_mm(dy_NF.T, x_ND, offs=self._ends_E)
        return product_EFD.to(weight_EFD.dtype)

    def _none_beyond(self, out_NF: Tensor) -> Tensor:
        """Memory beyond the last end is left unset; it may hold anything, NaN too."""
        if self._whole:
            return out_NF
        row_N1 = torch.arange(len(out_NF), device=out_NF.device)[:, None]
        return out_NF.masked_fill(row_N1 >= self._ends_E[-1], 0)


def takes_grouped(x_ND: Tensor, *weights_EFD: Tensor, dtype: torch.dtype) -> bool:
    """Whether `Grouped` is the way for ``x_ND`` and these matrices in ``dtype``."""
    sizes = [size for weight_EFD in weights_EFD for size in weight_EFD.shape[1:]]
    return x_ND.is_cuda and dtype in Grouped.DTYPES and all(size % 8 == 0 for size in sizes)
