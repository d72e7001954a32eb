"""Runs a model for the count of it, and leaves no trace of that."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module, *, train: bool) -> Iterator[None]:
    """``model`` in training or evaluation mode, without gradients; afterwards each module in the mode
    that it was in, each parameter with the gradient that it had, buffers and generators as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = {parameter.device for parameter, _ in gradients}
    with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
        try:
            model.train(train)
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    module._buffers[name] = buffer.copy_(value)
            for module, training in modes:
                module.training = training
