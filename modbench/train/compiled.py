"""The losses of a training step, with their backward pass, as one program of torch.compile.

The shapes of routed layers follow from the batch's under the training rule, since capacities are known
before the scores. Layers with data-dependent shapes run eagerly between compiled parts. Results differ
from eager ones by rounding: sums are fused.

B sequences, T tokens.
"""

import os
import shutil
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.model.attention import Attention
from modbench.model.context import Context
from modbench.model.mlp import MLP
from modbench.routing.build import RoutedDecoder
from modbench.routing.force_balance import strided
from modbench.routing.topk import capacity_tokens

#: When to compile; ``auto``: on a GPU.
Compile = Literal["auto", "on", "off"]
#: Cross-entropy and auxiliary losses of inputs and targets, (B, T) each.
Losses = Callable[[Tensor, Tensor, Context], tuple[Tensor, Tensor | float]]
#: Logits of tokens, (B, T).
Forward = Callable[[Tensor, Context], Tensor]
#: Name of a backend of torch.compile, or a function that returns a callable for a traced graph.
Backend = str | Callable[..., Any]


def compiles(wanted: Compile, on: torch.device) -> bool:
    """Return True if ``wanted`` compiles on the device ``on``.

    Raises:
        UserError: it does, and there is no C++ compiler.
    """
    if wanted == "off" or (wanted == "auto" and on.type != "cuda"):
        return False
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if on.type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError(
            f"compile is '{wanted}' and no C++ compiler is found ({' or '.join(compilers)}); "
            "install one, or set compile to 'off'"
        )
    return True


def losses_of(model: RoutedDecoder, wanted: Compile, backend: Backend | None = None) -> Losses:
    """Return the losses of ``model``, compiled by ``backend`` (None: PyTorch's default) if ``wanted``
    compiles on its device."""
    return _compiled(eager(model), model, wanted, backend)


def forward_of(model: RoutedDecoder, wanted: Compile) -> Forward:
    """Return the forward pass of ``model``, compiled in the same way."""

    def forward(tokens_BT: Tensor, context: Context) -> Tensor:
        return model(tokens_BT, context)  # type: ignore[no-any-return]

    return _compiled(forward, model, wanted)


def eager(model: RoutedDecoder) -> Losses:
    """Return the losses of ``model`` without compilation."""

    def losses(inputs_BT: Tensor, targets_BT: Tensor, context: Context) -> tuple[Tensor, Tensor | float]:
        loss = model.loss(inputs_BT, targets_BT, context)
        return loss, context.trace.auxiliary_loss()

    return losses


def compile_for_decoding(model: RoutedDecoder) -> None:
    """Compile in place the parts of decoding whose shapes do not grow with the cache, as CUDA graphs
    (``mode="reduce-overhead"``): projections, rotation and output of attention, and dense MLPs."""
    # One program for each layer and number of sequences that it processes.
    allow_programs(64 * len(model.layers))
    for module in model.layers.modules():
        names = {Attention: ("project", "merge"), MLP: ("forward",)}.get(type(module), ())
        for name in set(names) - set(vars(module)):  # not yet compiled
            function = torch.compile(getattr(module, name), mode="reduce-overhead", dynamic=False)
            vars(module)[name] = function
    # Results of CUDA graphs stay valid until the next token begins.
    model.register_forward_pre_hook(lambda *_: torch.compiler.cudagraph_mark_step_begin())


def allow_programs(most: int) -> None:
    """Raise PyTorch's limit of programs per function to ``most``; beyond it, the function runs eagerly,
    with no more than a warning."""
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, most)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 4 * most)


def _compiled(
    function: Callable[..., Any], model: RoutedDecoder, wanted: Compile, backend: Backend | None = None
) -> Callable[..., Any]:
    if not compiles(wanted, next(model.parameters()).device):
        return function
    if any(layer.has_data_dependent_shapes for layer in model.layers):
        # Each layer between eager ones is a program of its own, with a gradient and without.
        allow_programs(4 * len(model.layers))
    import torch._inductor.config as inductor

    inductor.deterministic = torch.are_deterministic_algorithms_enabled()
    # The host computes these from sizes and options; they are constants of the program.
    for constant in (capacity_tokens, strided):
        torch.compiler.assume_constant_result(constant)
    chosen = {} if backend is None else {"backend": backend}
    return torch.compile(function, dynamic=False, **chosen)  # type: ignore
