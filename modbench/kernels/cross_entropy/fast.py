"""Cross-entropy that never holds all logits, which are a language model's largest tensor: the logits of
a part of the rows are computed, reduced to a loss, dropped, and computed again in the backward pass.

N tokens, D model width, V vocabulary; R rows of a part.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modbench.kernels.cross_entropy import plain

#: Logits of a part: 256 MiB in float32, and 2 GiB on a GPU, where computing them twice takes a tenth of
#: a small model's step. Up to this size nothing is computed twice.
LOGITS, GPU_LOGITS = 2**26, 2**29
#: Rows of a part are a multiple of this number on a GPU, whose matmuls compute up to 256 rows in a tile.
TILE = 256


def cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, reduction: plain.Reduction = "mean"
) -> Tensor:
    """Like `plain.cross_entropy`."""
    rows = part_rows(len(weight_VD), x_ND.device)
    if len(x_ND) <= rows:
        return plain.cross_entropy(x_ND, weight_VD, targets_N, reduction)
    settings = {"use_reentrant": False, "preserve_rng_state": False}
    parts = zip(x_ND.split(rows), targets_N.split(rows), strict=True)
    losses_N = torch.cat(
        [
            checkpoint(plain.cross_entropy, x_RD, weight_VD, targets_R, "none", **settings)  # type: ignore
            for x_RD, targets_R in parts
        ]
    )
    return losses_N if reduction == "none" else losses_N.mean()


def part_rows(vocabulary: int, on: torch.device) -> int:
    """Rows of a part on the device ``on``."""
    if on.type != "cuda":
        return max(1, LOGITS // vocabulary)
    return max(1, GPU_LOGITS // vocabulary // TILE) * TILE
