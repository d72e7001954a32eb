"""Checks what the hooks of a router return; a message names the hook's file and line."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.routing.plugin_fault import defined_at
from modbench.routing.router import Router


def expect(router: Router, hook: str, condition: bool, found: str, expected: str) -> None:
    """Check ``condition``, which holds if the method ``hook`` of ``router`` returned what it must.

    Raises:
        UserError: it does not hold.
    """
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
