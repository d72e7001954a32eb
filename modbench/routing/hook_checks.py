"""Checks what the hooks of a router return; a message names the hook's file and line."""

from inspect import unwrap
from typing import Any

from modbench.errors import UserError
from modbench.routing.router import Router


def expect(router: Router, hook: str, condition: bool, found: str, expected: str) -> None:
    """Check ``condition``, which holds if the method ``hook`` of ``router`` returned what it must.

    Raises:
        UserError: it does not hold.
    """
    if not condition:
        name = getattr(router, "name", type(router).__name__)
        raise UserError(
            f"router '{name}': {hook} ({defined_at(router, hook)}) returned {found}; expected {expected}"
        )


def defined_at(router: Router, hook: str) -> str:
    """Return file and line of the definition of the method ``hook``."""
    code = unwrap(getattr(type(router), hook)).__code__
    return f"{code.co_filename}, line {code.co_firstlineno}"


def shown(value: Any) -> str:
    """Return the type of ``value``; of a tensor its shape and dtype; of a tuple its parts."""
    if isinstance(value, tuple) and value:
        return f"a tuple of {' and '.join(map(shown, value))}"
    shape = getattr(value, "shape", None)
    if shape is None:
        return type(value).__name__
    return f"a tensor of shape {tuple(shape)} and {value.dtype}"
