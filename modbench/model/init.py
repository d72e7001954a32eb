"""Initial weights by name: a parameter's first values depend on the seed and on what it is for, not on
what else a scheme builds. So all schemes start from the same shared parts.

Normal with standard deviation 1/sqrt(columns), so that each matmul keeps its input's scale at every
width (LeCun et al. 1998, equation 16); what writes into the residual stream is scaled by
1/sqrt(2 * layers) besides (GPT-2, section 2.3).
"""

import hashlib
import math

import torch
from torch import Tensor


def stream(seed: int, name: str) -> torch.Generator:
    """A generator of its own for (seed, name); CPU, so that every device starts alike."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@torch.no_grad()
def normal_(weight: Tensor, seed: int, name: str, *, scale: float = 1.0) -> None:
    """Fill ``weight`` (..., columns) from the stream (seed, name), with ``scale`` times the standard
    deviation above."""
    if weight.is_meta:
        return
    values = torch.randn(weight.shape, generator=stream(seed, name), dtype=torch.float32)
    weight.copy_(values.mul_(scale / math.sqrt(weight.shape[-1])))


def residual_scale(layers: int) -> float:
    """For what writes into the residual stream: twice in each of ``layers`` layers."""
    return 1 / math.sqrt(2 * layers)
