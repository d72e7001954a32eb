"""Fast paths of the expert bank: `F.grouped_mm` for counts that stay on a GPU, and rows in blocks for
bfloat16 on a CPU. README.md has the measured gains.

E experts, N rows, n rows of one expert, D model width, F hidden width, C columns of ``up``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.kernels.expert_bank import plain

#: Rows of an expert in bfloat16 on a CPU are a multiple of this number, and a remainder.
BLOCK = 64


def in_blocks(
    rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor, counts: Sequence[int], mlp: str
) -> Tensor:
    """Each expert's rows in two parts, a multiple of `BLOCK` and the remainder. oneDNN generates code
    for each number of rows that it has not met recently, which takes longer than a small matmul."""
    parts: list[tuple[int, int]] = []
    for expert, count in enumerate(counts):
        rest = count % BLOCK
        sizes = (count - rest, rest) if rest and count > BLOCK else (count,)
        parts += [(expert, size) for size in sizes]
    all_ups, all_downs = up_ECD.unbind(), down_EDF.unbind()
    ups, downs = ([weights[expert] for expert, _ in parts] for weights in (all_ups, all_downs))
    return plain.expert_bank(rows_ND, ups, downs, [size for _, size in parts], mlp)


def grouped(rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor, counts_E: Tensor, mlp: str) -> Tensor:
    ends_E = counts_E.cumsum(0).to(torch.int32)
    # `grouped_mm` leaves rows beyond the last offset unset, in its result and in its gradients.
    beyond_N1 = torch.arange(len(rows_ND), device=rows_ND.device)[:, None] >= ends_E[-1]
    # On Blackwell it leaves the weight gradient of an empty group unset (pytorch/pytorch#172439).
    empty_E11 = (counts_E == 0)[:, None, None]
    up_ECD, down_EDF = (
        weight.to(rows_ND.dtype).masked_fill(empty_E11, 0) for weight in (up_ECD, down_EDF)
    )
    x_ND = rows_ND.masked_fill(beyond_N1, 0)
    up_NC = F.grouped_mm(x_ND, up_ECD.transpose(1, 2), offs=ends_E)
    out_ND = F.grouped_mm(plain.activation(up_NC, mlp), down_EDF.transpose(1, 2), offs=ends_E)
    return out_ND.masked_fill(beyond_N1, 0)


def fits_grouped_mm(up_ECD: Tensor, down_EDF: Tensor, dtype: torch.dtype) -> bool:
    """Return True if ``F.grouped_mm`` takes these weights in ``dtype``: on a GPU and under
    `torch.compile` it needs bfloat16 and rows of a multiple of 16 bytes."""
    sizes = (*up_ECD.shape[1:], *down_EDF.shape[1:])
    return dtype == torch.bfloat16 and all(size % 8 == 0 for size in sizes)
