"""Initial weights by name: a parameter's first values depend on the seed and on what it is for, not on
what else a scheme builds. So all schemes start from the same shared parts.

Normal with standard deviation 0.02, residual projections scaled by 1/sqrt(2 * layers) (GPT-2, section
2.3): what the compared papers start from.
"""

import hashlib
import math

import torch
from torch import Tensor

STANDARD_DEVIATION = 0.02


def stream(seed: int, name: str) -> torch.Generator:
    """A generator of its own for (seed, name); CPU, so that every device starts alike."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@torch.no_grad()
def normal_(weight: Tensor, seed: int, name: str, *, residual_of: int | None = None) -> None:
    """Fill ``weight`` from the stream (seed, name). ``residual_of``: the number of layers, for a
    projection that writes into the residual stream."""
    if weight.is_meta:
        return
    deviation = STANDARD_DEVIATION / (math.sqrt(2 * residual_of) if residual_of else 1.0)
    values = torch.randn(weight.shape, generator=stream(seed, name), dtype=torch.float32)
    weight.copy_(values.mul_(deviation))
