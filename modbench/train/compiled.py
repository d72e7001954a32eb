"""The losses of a training step, with their backward pass, as one program of torch.compile.

The shapes of routed layers follow from the batch's under the training rule, since capacities are known
before the scores. Layers with data-dependent shapes run eagerly between compiled parts. Results differ
from eager ones by rounding: sums are fused.

B sequences, T tokens.
"""

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.model.context import Context
from modbench.model.language_model import LanguageModel
from modbench.routing.force_balance import strided
from modbench.routing.topk import capacity_tokens

#: When to compile; ``auto``: on a GPU.
Compile = Literal["auto", "on", "off"]
#: Cross-entropy and auxiliary losses of inputs and targets, (B, T) each.
Losses = Callable[[Tensor, Tensor, Context], tuple[Tensor, Tensor | float]]


def compiles(wanted: Compile, on: torch.device) -> bool:
    """Return True if ``wanted`` compiles on the device ``on``. Raise a `UserError` if it does, and there
    is no C++ compiler."""
    if wanted == "off" or (wanted == "auto" and on.type != "cuda"):
        return False
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if on.type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError(
            f"compile is '{wanted}' and no C++ compiler is found ({' or '.join(compilers)}); "
            "install one, or set compile to 'off'"
        )
    return True


def eager(model: LanguageModel) -> Losses:
    """Return the losses of ``model`` without compilation."""

    def losses(inputs_BT: Tensor, targets_BT: Tensor, context: Context) -> tuple[Tensor, Tensor | float]:
        loss = model.loss(inputs_BT, targets_BT, context)
        return loss, context.trace.auxiliary_loss()

    return losses


def compiled(
    function: Callable[..., Any], model: LanguageModel, wanted: Compile, *, recompute: bool = False
) -> Callable[..., Any]:
    """Return ``function``, a pass of ``model``, compiled if ``wanted`` compiles on its device. Where it
    will ``recompute``, each layer is a program of its own, with the checkpoint around it: torch.compile
    leaves a program at each checkpoint, and would run the layers eagerly."""
    if not compiles(wanted, next(model.parameters()).device):
        return function
    if recompute or any(getattr(layer, "has_data_dependent_shapes", False) for layer in model.layers):
        import torch._dynamo.config as dynamo

        # Each layer between eager ones is a program of its own, with a gradient and without. Beyond
        # PyTorch's limit of programs, layers run eagerly, with no more than a warning.
        number = 4 * len(model.layers)
        dynamo.recompile_limit = max(dynamo.recompile_limit, number)
        dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 4 * number)
    import torch._inductor.config as inductor

    inductor.deterministic = torch.are_deterministic_algorithms_enabled()
    # The host computes these from sizes and options; they are constants of the program.
    for constant in (capacity_tokens, strided):
        torch.compiler.assume_constant_result(constant)
    if not recompute:
        return torch.compile(function, dynamic=False)
    own = [layer for layer in model.layers if not getattr(layer, "has_data_dependent_shapes", False)]
    programs_of = {layer: torch.compile(layer, dynamic=False) for layer in own}

    def by_layer(inputs_BT: Tensor, targets_BT: Tensor, context: Context) -> Any:
        context.programs = programs_of
        return function(inputs_BT, targets_BT, context)

    return by_layer


def programs() -> dict[str, int]:
    """The number of programs that torch.compile has made in this process, and of the places where it
    left one for Python ("breaks")."""
    if "torch._dynamo.utils" not in sys.modules:
        return {"graphs": 0, "breaks": 0}
    from torch._dynamo.utils import counters

    return {
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
    }
