"""Whether a compiled program teaches what the model teaches as it is written.

Of an `autograd.Function` whose forward pass changes its result in place, PyTorch 2.11 compiles gradients
of 0 and says nothing: such a model trains, and parts of it learn nothing. A router of somebody else's
may hold one, and other versions may have other faults.

B sequences, T tokens.
"""

import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder
from modbench.train.compiled import Losses, written
from modbench.train.kept import Kept
from modbench.train.numerics import autocast

#: A norm of a gradient over the largest one of the parameters: what lies below may be rounding.
NEGLIGIBLE = 1e-6
#: Passes in which a gradient must be 0 to be lost. Routers may draw who is computed, and compiled they
#: draw other numbers.
PASSES = 16


def check_gradients(
    model: RoutedDecoder,
    losses: Losses,
    batch: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    *,
    forced_balance: bool = False,
) -> None:
    """That ``losses``, the compiled ones of ``model``, give a gradient to each parameter that gets one
    from the first sequence of ``batch`` (B, T) as the model is written: of one sequence, so that it
    takes little memory. A part that learns nothing yet as it is written, behind a gate of 0, passes.
    Neither parameters and buffers nor torch's default generators are changed. After it there are no
    gradients.

    Raises:
        UserError: a parameter gets none.
    """
    alone = (batch[0][:1], batch[1][:1])
    want = _norms(model, written(model), alone, dtype, forced_balance, seed=0)
    least = NEGLIGIBLE * max(want.values(), default=0.0)
    lost = [name for name, norm in want.items() if norm > least]
    for seed in range(PASSES):
        have = _norms(model, losses, batch, dtype, forced_balance, seed)
        lost = [name for name in lost if not have[name]]
        if not lost:
            return
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    raise UserError(
        f"compiled by PyTorch {torch.__version__}, the gradient of {', '.join(lost[:3])}{more} is 0, "
        "and as written it is not; set compile to 'off', or find what in the router is changed in place"
    )


def _norms(
    model: RoutedDecoder,
    losses: Losses,
    batch: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    forced_balance: bool,
    seed: int,
) -> dict[str, float]:
    """Of each parameter's gradient, 0 where there is none."""
    kept = Kept(model)
    torch.manual_seed(seed)
    context = Context(selection="topk", forced_balance=forced_balance)
    with autocast(dtype, batch[0].device):
        loss, auxiliary = losses(*batch, context)
    (loss + auxiliary).backward()
    norms = {name: _norm(parameter) for name, parameter in model.named_parameters()}
    kept.put_back()
    return norms


def _norm(parameter: nn.Parameter) -> float:
    return 0.0 if parameter.grad is None else parameter.grad.norm().item()
