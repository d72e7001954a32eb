"""The losses of a training step, and with them its backward pass, as one program of torch.compile.

Under the training rule the shapes of routed layers follow from the batch's, for capacities are known
before the scores are. Layers with data-dependent shapes run eagerly, between
compiled parts. Attention and rotary angles on a CPU, cross-entropy in parts and
experts are ops of our own (``modbench::``) to it. Outputs differ from what is written by rounding: sums
are fused.

B sequences, T tokens.
"""

import functools
import hashlib
import inspect
import os
import shutil
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.model import (
    causal_attention,
    grouped,
    kernels,
)
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder
from modbench.routing.force_balance import strided
from modbench.routing.topk import capacity_tokens

#: When to compile; ``auto``: on a GPU.
Compile = Literal["auto", "on", "off"]
#: Cross-entropy and auxiliary losses of inputs and targets, (B, T) each.
Losses = Callable[[Tensor, Tensor, Context], tuple[Tensor, Tensor | float]]
#: Logits of tokens, (B, T).
Forward = Callable[[Tensor, Context], Tensor]
F = TypeVar("F", bound=Callable[..., object])
#: What builds inductor's kernels of a CPU where CXX names nothing.
_BUILDERS = ("g++", "clang++")


def compiles(wanted: Compile, on: torch.device) -> bool:
    """Whether ``wanted`` is to compile on the device ``on``.

    Raises:
        UserError: it is, and there is nothing to compile with.
    """
    if wanted == "off" or (wanted == "auto" and on.type != "cuda"):
        return False
    named = os.environ.get("CXX")
    if on.type == "cpu" and not any(shutil.which(name) for name in ([named] if named else _BUILDERS)):
        raise UserError(
            f"compile is '{wanted}' and no C++ compiler is found ({named or ' or '.join(_BUILDERS)}); "
            "install one, or set compile to 'off'"
        )
    return True


def losses_of(model: RoutedDecoder, wanted: Compile) -> Losses:
    """The losses of ``model``, compiled if ``wanted`` is to on its device: when they are first called.

    Raises:
        UserError: as `compiles`.
    """
    return _compiled(written(model), model, wanted)


def forward_of(model: RoutedDecoder, wanted: Compile) -> Forward:
    """``model`` itself, compiled alike.

    Raises:
        UserError: as `compiles`.
    """

    def forward(tokens_BT: Tensor, context: Context) -> Tensor:
        return model(tokens_BT, context)  # type: ignore[no-any-return]

    return _compiled(forward, model, wanted)


def _compiled(function: F, model: RoutedDecoder, wanted: Compile) -> F:
    if not compiles(wanted, next(model.parameters()).device):
        return function
    if any(layer.has_data_dependent_shapes for layer in model.layers):
        # Between those that run as they are written, each layer is a program of its own, with a gradient
        # and without.
        allow_programs(4 * len(model.layers))
    return as_one_program(function)


def allow_programs(most: int) -> None:
    """Let PyTorch make so many programs of one function, or as many as it would. Beyond its limit it
    runs the function as it is written, beside others that are compiled, and only warns."""
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, most)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 4 * most)


def written(model: RoutedDecoder) -> Losses:
    """The losses of ``model`` as they are written."""

    def losses(inputs_BT: Tensor, targets_BT: Tensor, context: Context) -> tuple[Tensor, Tensor | float]:
        loss = model.loss(inputs_BT, targets_BT, context)
        return loss, context.trace.auxiliary_loss()

    return losses


def as_one_program(function: F) -> F:
    """``function`` of a model compiled, once for each shape of batch."""
    # Programs that PyTorch keeps from run to run know our own ops by their names alone.
    torch.compiler.config.cache_key_tag = _tag()
    # What the host reckons from sizes and options is no part of a program.
    for reckoned in (capacity_tokens, strided):
        torch.compiler.assume_constant_result(reckoned)
    return torch.compile(function, dynamic=False)  # type: ignore[return-value]


@functools.cache
def _tag() -> str:
    """The user's own tag, if there is one, and a digest of the source of our own ops."""
    rooms = (causal_attention, grouped, kernels)
    ops = hashlib.sha256(b"".join(inspect.getsource(room).encode() for room in rooms)).hexdigest()
    return torch.compiler.config.cache_key_tag + ops
