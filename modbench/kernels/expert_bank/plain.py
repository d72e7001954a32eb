"""The definition of the expert bank: a loop over experts.

E experts, N rows (token-expert assignments), n rows of one expert, D model width, F hidden width, C
columns of ``up``: 2 F for SwiGLU, gate first, F for GELU.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def expert_bank(
    rows_ND: Tensor,
    ups: Tensor | Sequence[Tensor],
    downs: Tensor | Sequence[Tensor],
    counts: Sequence[int],
    mlp: str,
) -> Tensor:
    """down(activation(up x)) with the weights of each row's expert, (C, D) and (D, F), cast to the rows'
    dtype, (N, D).

    Rows are sorted by expert, ``counts[e]`` of them for expert e. Rows beyond the sum of ``counts``
    belong to no expert and come out as 0."""
    *parts, beyond_nD = rows_ND.split([*counts, len(rows_ND) - sum(counts)])
    out = [
        F.linear(activation(F.linear(x_nD, up_CD.to(x_nD.dtype)), mlp), down_DF.to(x_nD.dtype))
        for x_nD, up_CD, down_DF in zip(parts, ups, downs, strict=True)
        # In training an expert without rows has a gradient of 0, not none.
        if len(x_nD) or torch.is_grad_enabled()
    ]
    return torch.cat([*out, torch.zeros_like(beyond_nD)])


def activation(up_NC: Tensor, mlp: str) -> Tensor:
    """SwiGLU (Shazeer 2020, equation 6) or GELU, (N, F)."""
    if mlp == "gelu":
        return F.gelu(up_NC)
    gate_NF, value_NF = up_NC.chunk(2, dim=-1)
    return F.silu(gate_NF) * value_NF
