"""Cross-entropy that never holds all logits, which are a language model's largest tensor: the logits of
a part of the rows are computed, reduced to a loss, dropped, and computed again in the backward pass.

N tokens, D model width, V vocabulary; R rows of a part.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modbench.kernels.cross_entropy import plain

#: Logits of a part: 256 MiB in float32. Up to this size nothing is computed twice.
LOGITS = 2**26


def cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """As `plain.cross_entropy`."""
    rows = part_rows(len(weight_VD))
    if len(x_ND) <= rows:
        return plain.cross_entropy(x_ND, weight_VD, targets_N)
    parts = zip(x_ND.split(rows), targets_N.split(rows), strict=True)
    losses = [
        checkpoint(  # type: ignore[no-untyped-call]
            plain.cross_entropy,
            x_RD,
            weight_VD,
            targets_R,
            "sum",
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for x_RD, targets_R in parts
    ]
    return torch.stack(losses).sum() / len(x_ND)


def losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """As `plain.losses`."""
    rows = part_rows(len(weight_VD))
    parts = zip(x_ND.split(rows), targets_N.split(rows), strict=True)
    return torch.cat([plain.losses(x_RD, weight_VD, targets_R) for x_RD, targets_R in parts])


def part_rows(vocabulary: int) -> int:
    """Rows of a part."""
    return max(1, LOGITS // vocabulary)
