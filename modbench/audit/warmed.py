"""The model that an audit of a scheme runs on: a few training steps after initialisation.

B sequences, T tokens.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor

from modbench.audit.finding import ModelSubject
from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.language_model import LanguageModel
from modbench.routing.build import RoutedDecoder, build_model, outline
from modbench.routing.registry import build_router
from modbench.routing.router import Router
from modbench.train.numerics import device

#: Folder of a Linux control group, and the files of its limit and of what is used; versions 2 and 1.
_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
#: Training steps before the audit, so that thresholds, biases and predictors have changed.
STEPS = 8
#: Small, since a few steps at the full rate teach a predictor to skip all tokens.
RATE = 1e-4
#: Sequences of a training step, and their longest length.
SEQUENCES, LONGEST = 4, 64
#: The odd shape of every audit, and the number of sequences at the length of the given size.
ODD, LONG = (3, 63), 2
#: Most bytes that an audit takes per parameter: the model, a copy in float64, and a second one with its
#: gradients.
BYTES = 32

M = TypeVar("M", bound=LanguageModel)


def warmed(
    config: ModelConfig, name: str, options: Mapping[str, Any], seed: int, sequence: int
) -> RoutedDecoder:
    """Build a decoder and train it as `warm_up`."""
    return warm_up(build_model(config, build_router(name, options), seed), seed, sequence)


def fitting(config: ModelConfig, router: Router) -> tuple[ModelConfig, str]:
    """Return ``config``, or where its audit needs more memory than is free, one with fewer layers that
    has layers of all its kinds, and a note on that; the smallest of these if none is small enough."""
    free = free_bytes(device())
    whole = outline(config, router)
    if BYTES * whole.parameter_count("total") <= free:
        return config, ""
    kinds = {type(layer) for layer in whole.layers}
    found, note = config, ""
    for layers in reversed(range(1, config.layers)):
        smaller = replace(config, layers=layers)
        with suppress(UserError):  # the router rejects the shape
            model = outline(smaller, router)
            if {type(layer) for layer in model.layers} == kinds:
                found, note = smaller, f" ({layers} of {config.layers} layers, for want of memory)"
                if BYTES * model.parameter_count("total") <= free:
                    break
    return found, note


def warm_up(model: M, seed: int, sequence: int) -> M:
    """Train ``model`` for a few steps on random tokens, ``sequence`` (at most `LONGEST`) in each
    sequence, on this machine's device."""
    model = model.to(device())
    subject = ModelSubject(model, seed)
    for number in range(STEPS):
        take_step(model, subject.tokens(SEQUENCES, min(sequence, LONGEST) + 1, draw=1 + number))
    return model.eval()


def take_step(model: LanguageModel, text_BT: Tensor) -> None:
    """Move each weight by `RATE` against the sign of its gradient: about what the first steps of AdamW
    do, whose import in PyTorch takes a second."""
    context = Context()
    loss = model.train().loss(text_BT[:, :-1], text_BT[:, 1:], context)
    (loss + context.trace.auxiliary_loss()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad.sign(), alpha=RATE)
    model.zero_grad(set_to_none=True)


def free_bytes(on: torch.device) -> int:
    """Bytes that this process can still allocate on the device ``on``, within the limit of its control
    group."""
    if on.type == "cuda":
        held = torch.cuda.memory_reserved(on) - torch.cuda.memory_allocated(on)
        return torch.cuda.mem_get_info(on)[0] + held
    free = [psutil.virtual_memory().available]
    for folder, limit, used in _GROUPS:
        with suppress(OSError, ValueError):  # no such group, or "max"
            free.append(int((folder / limit).read_text()) - int((folder / used).read_text()))
    return min(free)
