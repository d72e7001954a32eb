"""Checks what the hooks of a router return; a message names the hook's file and line.

N tokens, E experts, K experts of a token, D model width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

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


def checked_choice(router: Router, choice: Any, logits_NE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the ids (N, K) and gates (N, K) of `choose`."""
    shape = len(logits_NE), top_k
    pair = isinstance(choice, tuple | list) and len(choice) == 2
    expect(router, "choose", pair, shown(choice), "two tensors, expert ids and gates")
    ids_NK, gates_NK = choice
    expected, found = "integer expert ids (N, top_k)", "expert ids as "
    checked_tensor(router, "choose", ids_NK, shape, expected, found=found, dtypes=_INTEGERS)
    expected = "floating-point gates (N, top_k)"
    checked_tensor(router, "choose", gates_NK, shape, expected, found="gates as ")
    return ids_NK.to(torch.int64), gates_NK
