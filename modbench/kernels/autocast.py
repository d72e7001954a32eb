"""The dtype that autocast gives to matmuls."""

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype to which autocast casts ``x`` in a matmul; None if it casts nothing: outside autocast,
    float64, and on the meta device, which has no autocast."""
    kind = x.device.type
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a matmul of ``x``."""
    dtype = autocast_dtype(x)
    return x.dtype if dtype is None else dtype
