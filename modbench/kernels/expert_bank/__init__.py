"""The MLPs of several experts on rows that are sorted by expert."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modbench.kernels import mode
from modbench.kernels.expert_bank import fast, plain

#: Rows of each expert: integers, a tensor (E,) that stays on its device, or None for equal counts.
Counts = Sequence[int] | Tensor | None


def expert_bank(rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor, counts: Counts, mlp: str) -> Tensor:
    """down(activation(up x)) with the weights of each row's expert, (N, D), by the selected kernels."""
    if isinstance(counts, Tensor):
        return fast.grouped(rows_ND, up_ECD, down_EDF, counts, mlp)
    fits = mode() == "fast"
    if counts is None:
        if fits and rows_ND.is_cuda:
            return fast.equal(rows_ND, up_ECD, down_EDF, mlp)
        counts, fits = [len(rows_ND) // len(up_ECD)] * len(up_ECD), False
    if fits and rows_ND.is_cpu and rows_ND.dtype == torch.bfloat16:
        return fast.in_blocks(rows_ND, up_ECD, down_EDF, counts, mlp)
    return plain.expert_bank(rows_ND, up_ECD, down_EDF, counts, mlp)
