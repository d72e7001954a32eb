"""An exponential average that training moves and a checkpoint keeps."""

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """``value`` moves by (1 - decay) of the way at each update; by 1/n at the n-th of the first few, so
    that the start value leaves no trace (the plain mean, until it is steadier than the decay)."""

    value: Tensor
    updates: Tensor

    def __init__(self, start: Tensor, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", start.clone().to(torch.float32))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, seen: Tensor) -> None:
        self.updates += 1
        rate = (1 / self.updates).clamp(min=1 - self.decay).to(self.value.dtype)
        self.value.lerp_(seen.to(self.value.dtype), rate)
