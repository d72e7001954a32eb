"""Checks what the hooks of a router return; a message names the hook's file and line.

N tokens, K experts of a token.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.routing.plugin_fault import defined_at
from modbench.routing.router import Router

_DTYPES = {
    "bool": {torch.bool},
    "integer": {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8},
    "floating-point": {torch.float64, torch.float32, torch.bfloat16, torch.float16},
}


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
    kind: str = "floating-point",
    *,
    part: str = "",
) -> Tensor:
    """Return ``value``, the ``part`` of what ``hook`` returned, if it is a tensor of ``shape`` and
    ``kind``."""
    right = isinstance(value, Tensor) and value.shape == torch.Size(shape)
    right = right and value.dtype in _DTYPES[kind]
    expected = f"{part}{kind} values of shape {tuple(shape)}"
    expect(router, hook, right, part + shown(value), expected)
    return value  # type: ignore[no-any-return]


def expect_losses(router: Router, losses: Any, hook: str = "losses") -> None:
    """Check that ``losses``, what the method ``hook`` returned, are scalars by name."""
    expect(router, hook, isinstance(losses, Mapping), shown(losses), "a dict of scalar tensors by name")
    for name, loss in losses.items():
        right = isinstance(loss, Tensor) and loss.numel() == 1
        expect(router, hook, right, f"'{name}' as {shown(loss)}", "a scalar tensor")


def checked_choice(router: Router, choice: Any, tokens: int, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the ids and gates, (N, K) each, of N ``tokens`` that `choose` returned."""
    pair = isinstance(choice, tuple | list) and len(choice) == 2
    expect(router, "choose", pair, shown(choice), "two tensors, expert ids and gates")
    ids, gates = choice
    shape = tokens, top_k
    ids_NK = checked_tensor(router, "choose", ids, shape, "integer", part="expert ids as ")
    return ids_NK.to(torch.int64), checked_tensor(router, "choose", gates, shape, part="gates as ")
