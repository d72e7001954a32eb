"""The dtype that autocast gives to matmuls."""

import torch
from torch import Tensor


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a matmul of ``x``. Autocast leaves float64 as it is, and the meta device has
    no autocast."""
    kind = x.device.type
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)
