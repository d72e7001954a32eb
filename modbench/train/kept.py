"""What a forward and a backward pass change, kept to be put back: for passes that only ask something."""

import torch
from torch import nn


class Kept:
    """The buffers of ``model`` as they are now, and torch's default generators."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._on = next(model.parameters()).device
        self._buffers = [
            (
                module,
                {name: (b, None if b is None else b.clone()) for name, b in module._buffers.items()},
            )
            for module in model.modules()
        ]
        self._random = torch.get_rng_state()
        self._cuda_random = torch.cuda.get_rng_state(self._on) if self._on.type == "cuda" else None

    def put_back(self) -> None:
        """The same tensors with the same values, whatever was written to them or put in their place; and
        no gradients."""
        self._model.zero_grad(set_to_none=True)
        torch.set_rng_state(self._random)
        if self._cuda_random is not None:
            torch.cuda.set_rng_state(self._cuda_random, self._on)
        with torch.no_grad():
            for module, buffers in self._buffers:
                module._buffers.clear()
                for name, (buffer, value) in buffers.items():
                    module._buffers[name] = buffer
                    # An expanded one can't be written to, by whoever.
                    if buffer is not None and value is not None and not torch.equal(buffer, value):
                        buffer.copy_(value)
