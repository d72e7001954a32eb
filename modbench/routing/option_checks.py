"""Checks of router options: types, and options that have no effect. Imports no torch."""

from dataclasses import fields
from typing import TYPE_CHECKING, get_type_hints

from modbench.errors import UserError
from modbench.typed import check_type

if TYPE_CHECKING:
    from modbench.routing.router import Router


def check_types(router: "Router") -> None:
    """Raise a `UserError` for an option of another type than its field, or NaN or infinite."""
    hints = get_type_hints(type(router))
    for option, value in router.options().items():
        check_type(option, value, hints[option])


def check_at_least(lowest: int, router: "Router", *options: str) -> None:
    """Raise a `UserError` for an option that is set and below ``lowest``."""
    for option in options:
        value = getattr(router, option)
        if value is not None and value < lowest:
            raise UserError(f"{option} is {value}; it must be {lowest} or more")


def reject_unused(router: "Router", *rules: tuple[str, bool, str]) -> None:
    """Reject options that are set but have no effect: two rows of a table would differ by name alone. A
    rule is (option, True if it has no effect, option that is the reason). Raise a `UserError`, unless
    they have their default values."""
    defaults = {field.name: field.default for field in fields(router)}  # type: ignore[arg-type]
    for option, is_unused, reason in rules:
        if is_unused and getattr(router, option) != defaults[option]:
            because = f"{reason} {getattr(router, reason)!r}"
            raise UserError(f"option '{option}' has no effect with {because}; leave it out")
