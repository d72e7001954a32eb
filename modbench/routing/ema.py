"""Exponential moving average as a buffer: training updates it, checkpoints store it."""

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """value <- value + max(1 - decay, 1/n) * (seen - value) at the n-th update: the plain mean of the
    first values, so that the start value has no influence, then the exponential average."""

    value: Tensor
    updates: Tensor

    def __init__(self, start: Tensor, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", start.clone().to(torch.float32))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, seen: Tensor) -> None:
        """Add the value ``seen``."""
        self.updates += 1
        rate = (1 / self.updates).clamp(min=1 - self.decay).to(self.value.dtype)
        self.value.lerp_(seen.to(self.value.dtype), rate)
