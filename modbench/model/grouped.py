"""Matmuls of rows that lie sorted by expert, each expert's with a matrix of its own: three ways.

`Slices` multiplies expert by expert. `Equal` is one bmm, of experts that have as many rows as one
another. `Grouped` is one call of `torch.nn.functional.grouped_mm`, and needs no host that knows how many
rows an expert has. `Products` is what all do.

Which wins was measured (`nox -s perf`, "grouped_mm over slices"): on a CPU the slices, in float32 and in
bfloat16, but of small experts (`modbench.model.in_one_call`). A GPU's host would have to wait for the
counts to slice by them.

E experts, N rows, M of them with what fills them up, F columns that come out, D columns that come in.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils import flop_counter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from modbench.counting.formulas import register_flop_formula
from modbench.model import processor

#: A CPU's bfloat16 kernels are made anew for each number of rows, which takes as long as running them,
#: and are slower where a tile isn't full: more rows than this are filled up with zeros to a multiple.
ROWS = 16
#: So few rows of float32 that a CPU slow with them had better multiply the matrix by them, not them by
#: the matrix.
FEW = 8
#: Numbers of a matrix that is multiplied by one row in `BLOCKS`, each thread its own: PyTorch's product
#: of a matrix and a vector keeps to one thread.
IN_BLOCKS, BLOCKS = 2**17, 4


def on_gpu(x: Tensor) -> bool:
    """Whether ``x`` is on a GPU, or, where memory is planned, stands for what is on one."""
    if has_torch_function((x,)):
        return handle_torch_function(on_gpu, (x,), x)  # type: ignore[no-any-return]
    return x.is_cuda


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
            multiply(filled(x_ND[rows]), weight_EFD[expert].to(x_ND.dtype).T, out_NF[rows])
        return out_NF

    def to_inputs(self, dy_NF: Tensor, weight_EFD: Tensor) -> Tensor:
        out_ND = self._empty(dy_NF, weight_EFD.shape[2])
        for expert, rows in spans(self._counts):
            multiply(filled(dy_NF[rows]), weight_EFD[expert].to(dy_NF.dtype), out_ND[rows])
        return out_ND

    def to_weights(self, dy_NF: Tensor, x_ND: Tensor, weight_EFD: Tensor) -> Tensor:
        out_EFD = torch.empty_like(weight_EFD)
        for expert, rows in spans(self._counts):
            count = rows.stop - rows.start
            weight_gradient(filled(dy_NF[rows]), filled(x_ND[rows]), out_EFD[expert], count)
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


def filled_count(like: Tensor, count: int, dtype: torch.dtype | None = None) -> int:
    """So many rows are multiplied where there are ``count``, on the device of ``like`` and in ``dtype``,
    None for its own."""
    dtype = like.dtype if dtype is None else dtype
    if count <= ROWS or not count % ROWS or dtype != torch.bfloat16 or not like.is_cpu:
        return count
    if on_gpu(like) or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return count
    return whole_tiles(count)


def whole_tiles(count: int) -> int:
    """``count`` rounded up to a multiple of `ROWS`."""
    return -(-count // ROWS) * ROWS


def filled(x_ND: Tensor) -> Tensor:
    """The rows, and of zeros what `filled_count` wants: (M, D)."""
    count = len(x_ND)
    most = filled_count(x_ND, count)
    if most == count:
        return x_ND
    x_MD = x_ND.new_empty(most, x_ND.shape[1])
    x_MD[:count] = x_ND
    x_MD[count:] = 0
    return x_MD


def multiply(x_MD: Tensor, weight_DF: Tensor, out_NF: Tensor, count: int | None = None) -> None:
    """``out_NF`` becomes ``x_MD @ weight_DF``, or the first rows of it. ``count`` rows of ``x_MD`` are
    real; None: as many as ``out_NF`` has."""
    if takes_few(x_MD):
        out_NF.copy_(few(x_MD, weight_DF.T))
        return
    rows = len(out_NF) if count is None else count
    if len(out_NF) == len(x_MD):
        _mm(x_MD, weight_DF, out_NF, rows, len(x_MD))
        return
    product_MF = out_NF.new_empty(len(x_MD), out_NF.shape[1])
    _mm(x_MD, weight_DF, product_MF, rows, len(x_MD))
    out_NF.copy_(product_MF[: len(out_NF)])


def weight_gradient(dy_MF: Tensor, x_MD: Tensor, out_FD: Tensor, count: int) -> None:
    """``out_FD``, whose dtype may be another, becomes ``dy_MF.T @ x_MD``: 0 of no rows. ``count`` rows
    of both are real."""
    if not count:
        out_FD.zero_()
        return
    same = out_FD.dtype == x_MD.dtype
    product_FD = out_FD if same else torch.empty_like(out_FD, dtype=x_MD.dtype)
    _mm(dy_MF.T, x_MD, product_FD, count, len(x_MD))
    if not same:
        out_FD.copy_(product_FD)


def _mm(one: Tensor, other: Tensor, out: Tensor, count: int, rows: int) -> None:
    """``out`` becomes ``one @ other``, of whose ``rows`` rows ``count`` are real. Who counts is told so;
    where nobody does, telling takes longer than many a matmul's start."""
    if count != rows and is_in_torch_dispatch_mode():
        torch.ops.modbench.filled_mm.default(one, other, out, count, rows)
    elif torch.jit.is_tracing():  # who counts a trace takes no third operand
        out.copy_(torch.mm(one, other))
    else:
        torch.mm(one, other, out=out)


# An op of its own: rows of zeros are in no count, as what a kernel fills its own tiles with is in none.
OPS = torch.library.Library("modbench", "FRAGMENT")
OPS.define("filled_mm(Tensor one, Tensor other, Tensor(a!) out, int count, int rows) -> ()")


@torch.library.impl(OPS, "filled_mm", "CPU")
def _filled_mm(one: Tensor, other: Tensor, out: Tensor, count: int, rows: int) -> None:
    torch.mm(one, other, out=out)


@torch.library.register_fake("modbench::filled_mm", lib=OPS)
def _(one: Tensor, other: Tensor, out: Tensor, count: int, rows: int) -> None:
    pass


def _flops(given: Mapping[str, Any], result: Any) -> int:
    return _product_flops(given["one"].shape, given["other"].shape, (), given["count"], given["rows"])


def _product_flops(
    one: Sequence[int], other: Sequence[int], out: Sequence[int], count: int, rows: int, **_: Any
) -> int:
    return 2 * one[0] * one[1] * other[1] // rows * count


register_flop_formula("modbench::filled_mm", _flops)
flop_counter.register_flop_formula(torch.ops.modbench.filled_mm)(_product_flops)  # PyTorch's own counter


def takes_few(x_ND: Tensor) -> bool:
    """Whether `few` is the way for these rows."""
    fits = x_ND.is_cpu and x_ND.dtype == torch.float32 and 0 < x_ND.shape[0] <= FEW
    return fits and processor.SLOW_FEW and not torch.jit.is_tracing()


def few(x_ND: Tensor, weight_FD: Tensor) -> Tensor:
    """``x_ND @ weight_FD.T``, the matrix on the left."""
    rows, (columns, inner) = x_ND.shape[0], weight_FD.shape
    if rows == 1 and columns % BLOCKS == 0 and columns * inner >= IN_BLOCKS:
        x_BD1 = x_ND.T.expand(BLOCKS, inner, 1)
        return torch.bmm(weight_FD.view(BLOCKS, columns // BLOCKS, inner), x_BD1).view(1, columns)
    return torch.mm(weight_FD, x_ND.T).T


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
        self._counts_E, self._whole = counts_E, whole
        self._ends_E = counts_E.cumsum(0).to(torch.int32)

    def forward(self, x_ND: Tensor, weight_EFD: Tensor) -> Tensor:
        weight_EDF = weight_EFD.to(x_ND.dtype).transpose(1, 2)
        return self._none_beyond(F.grouped_mm(x_ND, weight_EDF, offs=self._ends_E))

    def to_inputs(self, dy_NF: Tensor, weight_EFD: Tensor) -> Tensor:
        return self._none_beyond(F.grouped_mm(dy_NF, weight_EFD.to(dy_NF.dtype), offs=self._ends_E))

    def to_weights(self, dy_NF: Tensor, x_ND: Tensor, weight_EFD: Tensor) -> Tensor:
        product_EFD = F.grouped_mm(dy_NF.T, x_ND, offs=self._ends_E)
        # Of no rows a Blackwell GPU leaves it unset (pytorch/pytorch#172439).
        product_EFD.masked_fill_((self._counts_E == 0)[:, None, None], 0)
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
