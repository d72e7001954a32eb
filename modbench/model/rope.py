"""Rotary position embedding (Su et al. 2021, section 3.4.2).

B sequences, T tokens, H heads, P width of a head.
"""

import torch
from torch import Tensor


def rotary_angles(positions_BT: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, (B, T, 1, P/2) each, of position * base^(-2i / P) for the pairs i of a
    head of width P (equation 15), in float32."""
    half = width // 2
    exponents = torch.arange(half, device=positions_BT.device, dtype=torch.float32) / half
    angles_BT1P = positions_BT[:, :, None, None].to(torch.float32) * base**-exponents
    return angles_BT1P.cos(), angles_BT1P.sin()


def rotate(x_BTHP: Tensor, cos_BT1P: Tensor, sin_BT1P: Tensor) -> Tensor:
    """Rotate the pairs (i, i + P/2) of each head by its token's angles (equation 34), in float32 or
    wider; the result has the dtype of ``x_BTHP``."""
    first, second = x_BTHP.to(torch.promote_types(x_BTHP.dtype, cos_BT1P.dtype)).chunk(2, dim=-1)
    rotated = (first * cos_BT1P - second * sin_BT1P, second * cos_BT1P + first * sin_BT1P)
    return torch.cat(rotated, dim=-1).to(x_BTHP.dtype)
