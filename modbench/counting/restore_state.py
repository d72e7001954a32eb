"""Restores a model after a pass that only measures."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class SavedState:
    """The buffers of ``model`` and torch's default generators, saved when it is built."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._buffers = [
            (
                module,
                {name: (b, None if b is None else b.clone()) for name, b in module._buffers.items()},
            )
            for module in model.modules()
        ]
        self._random = torch.get_rng_state()
        devices = {parameter.device for parameter in model.parameters()}
        self._cuda_random = [(on, torch.cuda.get_rng_state(on)) for on in devices if on.type == "cuda"]

    def restore(self) -> None:
        """Put back the same buffers with the same values, and the generators; clear gradients."""
        self._model.zero_grad(set_to_none=True)
        torch.set_rng_state(self._random)
        for on, state in self._cuda_random:
            torch.cuda.set_rng_state(state, on)
        with torch.no_grad():
            for module, buffers in self._buffers:
                module._buffers.clear()
                for name, (buffer, value) in buffers.items():
                    module._buffers[name] = buffer
                    if buffer is None or value is None or buffer.is_meta:
                        continue
                    if not torch.equal(buffer, value):  # an expanded buffer can't be written to
                        buffer.copy_(value)


@contextmanager
def untouched(model: nn.Module, *, train: bool) -> Iterator[None]:
    """Run ``model`` in training or evaluation mode, without gradients; afterwards restore each module's
    mode, each parameter's gradient, buffers and generators."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    saved = SavedState(model)
    try:
        model.train(train)
        model.zero_grad(set_to_none=True)
        yield
    finally:
        saved.restore()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, training in modes:
            module.training = training
