"""The MLPs of several experts on rows that are sorted by expert."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modbench.kernels import mode
from modbench.kernels.expert_bank import fast, plain

#: Rows of each expert: integers, or a tensor (E,) that stays on its device.
Counts = Sequence[int] | Tensor


def expert_bank(rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor, counts: Counts, mlp: str) -> Tensor:
    """down(activation(up x)) with the weights of each row's expert, (N, D), by the selected kernels."""
    if isinstance(counts, Tensor):
        return fast.grouped(rows_ND, up_ECD, down_EDF, counts, mlp)
    uneven = len(set(counts)) > 1
    if uneven and mode() == "fast" and rows_ND.is_cpu and rows_ND.dtype == torch.bfloat16:
        return fast.in_blocks(rows_ND, up_ECD, down_EDF, counts, mlp)
    return plain.expert_bank(rows_ND, up_ECD, down_EDF, counts, mlp)
