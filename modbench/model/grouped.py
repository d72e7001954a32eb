"""Matmuls of rows that lie sorted by expert, each expert's with a matrix of its own: three ways.

`Slices` multiplies expert by expert. `Equal` is one bmm, of experts that have as many rows as one
another. `Grouped` is one call of `torch.nn.functional.grouped_mm`, and needs no host that knows how many
rows an expert has. `Products` is what all do.

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
#: So few rows of float32 that a CPU had better multiply the matrix by them, not them by the matrix.
FEW = 8
#: Numbers of a matrix that is multiplied by one row in `BLOCKS`, each thread its own: PyTorch's product
#: of a matrix and a vector keeps to one thread.
IN_BLOCKS, BLOCKS = 2**17, 4


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
        for expert, rows in spans(self._counts):
            multiply(x_ND[rows], weight_EFD[expert].to(x_ND.dtype).T, out_NF[rows])
        return out_NF

    def to_inputs(self, dy_NF: Tensor, weight_EFD: Tensor) -> Tensor:
        out_ND = self._empty(dy_NF, weight_EFD.shape[2])
        for expert, rows in spans(self._counts):
            multiply(dy_NF[rows], weight_EFD[expert].to(dy_NF.dtype), out_ND[rows])
        return out_ND

    def to_weights(self, dy_NF: Tensor, x_ND: Tensor, weight_EFD: Tensor) -> Tensor:
        out_EFD = torch.empty_like(weight_EFD)
        for expert, rows in spans(self._counts):
            weight_gradient(dy_NF[rows], x_ND[rows], out_EFD[expert])
        return out_EFD

    def _empty(self, x_ND: Tensor, columns: int) -> Tensor:
        out_NF = x_ND.new_empty(len(x_ND), columns)
        out_NF[sum(self._counts) :] = 0
        return out_NF


def spans(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Each expert and where its rows lie; also of experts that have none."""
    first = 0
    for expert, count in enumerate(counts):
        yield expert, slice(first, first + count)
        first += count


def multiply(x_ND: Tensor, weight_DF: Tensor, out_NF: Tensor) -> None:
    """``out_NF`` becomes ``x_ND @ weight_DF``."""
    if takes_few(x_ND):
        out_NF.copy_(few(x_ND, weight_DF.T))
        return
    for rows in _parts(x_ND):
        if torch.jit.is_tracing():  # who counts a trace takes no third operand
            out_NF[rows].copy_(torch.mm(x_ND[rows], weight_DF))
        else:
            torch.mm(x_ND[rows], weight_DF, out=out_NF[rows])


def takes_few(x_ND: Tensor) -> bool:
    """Whether `few` is the way for these rows."""
    fits = x_ND.is_cpu and x_ND.dtype == torch.float32 and 0 < len(x_ND) <= FEW
    return fits and not torch.jit.is_tracing()


def few(x_ND: Tensor, weight_FD: Tensor) -> Tensor:
    """``x_ND @ weight_FD.T``, the matrix on the left."""
    rows, columns = len(x_ND), len(weight_FD)
    if rows == 1 and columns % BLOCKS == 0 and weight_FD.numel() >= IN_BLOCKS:
        x_BD1 = x_ND.T.expand(BLOCKS, -1, 1)
        return torch.bmm(weight_FD.unflatten(0, (BLOCKS, -1)), x_BD1).view(1, columns)
    return torch.mm(weight_FD, x_ND.T).T


def weight_gradient(dy_NF: Tensor, x_ND: Tensor, out_FD: Tensor) -> None:
    """``out_FD``, whose dtype may be another, becomes ``dy_NF.T @ x_ND``: 0 of no rows."""
    parts = _parts(x_ND)
    if not parts:
        out_FD.zero_()
        return
    same = out_FD.dtype == x_ND.dtype
    product_FD = out_FD if same else torch.empty_like(out_FD, dtype=x_ND.dtype)
    for number, rows in enumerate(parts):
        if same and number:
            out_FD.addmm_(dy_NF[rows].T, x_ND[rows])
            continue
        torch.mm(dy_NF[rows].T, x_ND[rows], out=product_FD)
        if not same:
            out_FD.add_(product_FD) if number else out_FD.copy_(product_FD)


def _parts(x_ND: Tensor) -> list[slice]:
    """The rows in the parts in which they are multiplied."""
    count = len(x_ND)
    apart = x_ND.dtype == torch.bfloat16 and not x_ND.is_cuda
    middle = count - count % ROWS if apart else count
    return [part for part in (slice(0, middle), slice(middle, count)) if part.stop > part.start]


class Equal(Products):
    """As many rows of each expert, and no others."""

    def forward(self, x_ND: Tensor, weight_EFD: Tensor) -> Tensor:
        return self._product(x_ND, weight_EFD.to(x_ND.dtype).transpose(1, 2))

    def to_inputs(self, dy_NF: Tensor, weight_EFD: Tensor) -> Tensor:
        return self._product(dy_NF, weight_EFD.to(dy_NF.dtype))

    def to_weights(self, dy_NF: Tensor, x_ND: Tensor, weight_EFD: Tensor) -> Tensor:
        experts = len(weight_EFD)
        dy_EnF, x_EnD = (rows.unflatten(0, (experts, -1)) for rows in (dy_NF, x_ND))
        return torch.bmm(dy_EnF.transpose(1, 2), x_EnD).to(weight_EFD.dtype)

    def _product(self, x_ND: Tensor, weight_EDF: Tensor) -> Tensor:
        return torch.bmm(x_ND.unflatten(0, (len(weight_EDF), -1)), weight_EDF).flatten(0, 1)


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
