"""What routers check of their options besides ranges, and how it is worded. Imports no torch.

An option without effect is a mistake that nobody sees: two rows of a table that differ by a name alone.
"""

import math
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_type_hints

from modbench.errors import UserError
from modbench.typed import check_type

if TYPE_CHECKING:
    from modbench.routing.router import Router


def written(value: Any) -> str:
    """``value`` as a suite writes it: strings quoted, true and false, numbers without idle digits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return f"'{value}'" if isinstance(value, str) else f"{value}"


def check_finite(router: "Router") -> None:
    """
    Raises:
        UserError: an option is of another type than its field, or a number that is nan or infinite.
    """
    hints = get_type_hints(type(router))
    for option, value in router.options().items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{option} is {value}; it must be finite")
        check_type(option, value, hints[option])


def refuse_idle(router: "Router", names: Iterable[str], beside: str, remedy: str) -> None:
    """Refuse the first of ``names`` that is not at its default, and does nothing ``beside`` another.

    Raises:
        UserError: it names both options and values, why one is idle, and what to do.
    """
    defaults = {field.name: field.default for field in fields(router)}  # type: ignore[arg-type]
    for name in names:
        value = getattr(router, name)
        if value != defaults[name]:
            raise UserError(f"{name} is {written(value)} with {beside}; leave {name} out or {remedy}")
