"""Values from outside (TOML, the command line) against the types of a dataclass's fields.

Imports nothing of ours but the errors: any room may use it.
"""

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from decimal import Decimal
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from modbench.errors import UserError, known_names

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    dict: "a table",
    type(None): "nothing",
}


def wanted(hint: Any) -> str:
    """What ``hint`` asks for, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(wanted(part) for part in parts if part is not type(None))
    if origin in (tuple, list):
        return f"a list, each entry {wanted(parts[0])}"
    return _WORDS.get(origin or hint, str(hint))


def checked(what: str, value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` wants it: bool, int, float, str, dict, None, Literal, tuple[X, ...], unions.

    A float without a fraction is a whole number (TOML's ``1e13`` is a float); a list becomes a tuple.

    Raises:
        UserError: the value is of another type, or not finite; the sentence starts with ``what``.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        if any(value == part and type(value) is type(part) for part in parts):
            return value
    elif origin in (Union, types.UnionType):
        for part in parts:
            try:
                return checked(what, value, part)
            except UserError:
                continue
    elif origin in (tuple, list):
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(checked(f"{what}[{i}]", entry, parts[0]) for i, entry in enumerate(value))
    elif (origin or hint) is dict:
        if isinstance(value, dict):
            return value
    elif hint is int:
        if isinstance(value, float) and value.is_integer():
            return int(Decimal(repr(value)))  # as written: int(1e23) would be 10**23 - 8388608
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    raise UserError(f"{what} is {value!r}; it must be {wanted(hint)}")


def check_type(what: str, value: Any, hint: Any) -> None:
    """As `checked`, for what Python code gives: a whole number is no float, then.

    Raises:
        UserError: the value is of another type; the sentence starts with ``what``.
    """
    right = checked(what, value, hint)
    if isinstance(value, float) and isinstance(right, int):
        raise UserError(f"{what} is {value!r}; it must be {wanted(hint)}, such as {right}")


def checked_fields(
    where: str, table: Mapping[str, Any], kind: type, *, without: Sequence[str] = ()
) -> dict[str, Any]:
    """``table`` as keyword arguments of the dataclass ``kind``; the fields in ``without`` aren't known.

    Raises:
        UserError: an unknown key (with the nearest match) or a wrong type, each after ``where``.
    """
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind) if field.init and field.name not in without]
    for key in table:
        if key not in known:
            raise UserError(f"{where} has no key '{key}'; {known_names(key, known)}")
    return {key: checked(f"{where} {key}", value, hints[key]) for key, value in table.items()}


def built(where: str, table: Mapping[str, Any], kind: type) -> Any:
    """The dataclass ``kind`` from ``table``, checked.

    Raises:
        UserError: an unknown or a missing key, a wrong type, a value out of range; after ``where``.
    """
    arguments = checked_fields(where, table, kind)
    for field in fields(kind):
        required = field.default is MISSING and field.default_factory is MISSING
        if field.init and required and field.name not in arguments:
            raise UserError(f"{where} has no '{field.name}'; give it a value")
    try:
        return kind(**arguments)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
