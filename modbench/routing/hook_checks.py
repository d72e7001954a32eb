"""Checks what the hooks of a router return; a message names the hook's file and line. Values are checked
where they cost nothing: on a CPU, not while tensors have none.

N tokens, E experts, K experts of a token, D model width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.routing.plugin_fault import defined_at
from modbench.routing.router import Router

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def expect(router: Router, hook: str, condition: bool, found: str, expected: str) -> None:
    """Check ``condition``, which holds if the method ``hook`` of ``router`` returned what it must. Raise
    a `UserError` if it does not hold."""
    if not condition:
        name = getattr(router, "name", type(router).__name__)
        where = f"{hook}{defined_at(getattr(type(router), hook))}"
        raise UserError(f"router '{name}': {where} returned {found}; expected {expected}")


def shown(value: Any) -> str:
    """Return the type of ``value``; of a tensor its shape and dtype; of a tuple its parts."""
    if isinstance(value, tuple) and value:
        return f"a tuple of {' and '.join(map(shown, value))}"
    shape = getattr(value, "shape", None)
    if shape is None:
        return type(value).__name__
    return f"a tensor of shape {tuple(shape)} and {value.dtype}"


def checked_tensor(
    router: Router,
    hook: str,
    value: Any,
    shape: Sequence[int],
    expected: str,
    *,
    found: str = "",
    dtypes: tuple[torch.dtype, ...] | None = None,
) -> Tensor:
    """Return ``value``, which ``hook`` returned, in words the part ``found`` of it, if it is a tensor of
    ``shape`` and of one of ``dtypes`` (None: floating-point)."""
    right = isinstance(value, Tensor) and value.shape == torch.Size(shape)
    right = right and (value.is_floating_point() if dtypes is None else value.dtype in dtypes)
    expect(router, hook, right, found + shown(value), f"{expected} = {tuple(shape)}")
    return value  # type: ignore[no-any-return]


def expect_losses(router: Router, losses: Any, hook: str = "losses") -> None:
    """Check that ``losses``, what the method ``hook`` returned, are scalars by name."""
    expect(router, hook, isinstance(losses, Mapping), shown(losses), "a dict of scalar tensors by name")
    for name, loss in losses.items():
        right = isinstance(loss, Tensor) and loss.numel() == 1
        expect(router, hook, right, f"'{name}' as {shown(loss)}", "a scalar tensor")


def has_values(tensor: Tensor) -> bool:
    """Return True if checking the values of ``tensor`` costs no wait: not on a GPU, on the meta device
    or while compiling."""
    return not torch.compiler.is_compiling() and tensor.is_cpu and type(tensor) is Tensor


def checked_choice(router: Router, choice: Any, logits_NE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the ids (N, K) and gates (N, K) of `choose`."""
    shape, experts = (len(logits_NE), top_k), logits_NE.shape[1]
    pair = isinstance(choice, tuple | list) and len(choice) == 2
    expect(router, "choose", pair, shown(choice), "two tensors, expert ids and gates")
    ids_NK, gates_NK = choice
    expected, found = "integer expert ids (N, top_k)", "expert ids as "
    checked_tensor(router, "choose", ids_NK, shape, expected, found=found, dtypes=_INTEGERS)
    expected = "floating-point gates (N, top_k)"
    checked_tensor(router, "choose", gates_NK, shape, expected, found="gates as ")
    if has_values(ids_NK):
        low, high = (int(end) for end in ids_NK.aminmax())
        right = low >= 0 and high < experts
        expect(router, "choose", right, f"expert ids from {low} to {high}", f"0 to {experts - 1}")
    return ids_NK.to(torch.int64), gates_NK


def check_numbers(
    router: Router,
    hook: str,
    gates: Tensor,
    logits_NE: Tensor,
    x_ND: Tensor,
    scorer: nn.Module | None,
) -> None:
    """Reject gates of ``hook`` that are not finite, unless the model has diverged: its input or its
    weights are not finite."""
    if not has_values(gates) or gates.detach().isfinite().all():
        return
    weights = () if scorer is None else scorer.parameters()
    if not all(bool(part.detach().isfinite().all()) for part in (x_ND, *weights)):
        return
    finite = bool(logits_NE.detach().isfinite().all())
    found = "a module that gives NaN or Inf for finite inputs"
    expect(router, "scorer", finite, found, "finite logits")
    expect(router, hook, False, "gates that are NaN or Inf", "finite gates")
