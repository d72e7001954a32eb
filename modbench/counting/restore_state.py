"""Restores a model after a pass that only measures."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module, *, train: bool) -> Iterator[None]:
    """Run ``model`` in training or evaluation mode, without gradients; afterwards restore each module's
    mode, each parameter's gradient, the same buffers with the same values, and torch's generators."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    values = [(b, b.clone()) for _, saved in buffers for b in saved.values() if b is not None]
    gpus = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=gpus):
        try:
            model.train(train)
            model.zero_grad(set_to_none=True)
            yield
        finally:
            for module, saved in buffers:
                module._buffers.clear()
                module._buffers.update(saved)
            with torch.no_grad():
                for buffer, value in values:
                    # An expanded buffer can't be written to.
                    if not buffer.is_meta and not torch.equal(buffer, value):
                        buffer.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for module, training in modes:
                module.training = training
