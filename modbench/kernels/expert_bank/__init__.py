"""The MLPs of several experts on rows that are sorted by expert."""

from collections.abc import Sequence

from torch import Tensor

from modbench.kernels import mode
from modbench.kernels.expert_bank import fast, plain

#: Rows of each expert: integers, a tensor (E,) that stays on its device, or None for equal counts.
Counts = Sequence[int] | Tensor | None


def expert_bank(rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor, counts: Counts, mlp: str) -> Tensor:
    """down(activation(up x)) with the weights of each row's expert, (N, D), by the selected kernels."""
    if isinstance(counts, Tensor) or mode() == "fast":
        return fast.expert_bank(rows_ND, up_ECD, down_EDF, counts, mlp)
    if counts is None:
        counts = [len(rows_ND) // len(up_ECD)] * len(up_ECD)
    return plain.expert_bank(rows_ND, up_ECD, down_EDF, counts, mlp)
