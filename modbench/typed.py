"""Checks values from TOML files and command lines against field types, with pydantic."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from decimal import Decimal
from functools import cache
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from modbench.errors import UserError, known_names

#: Types of fields with a range; integers can be added, divided and drawn without overflow.
Count = Annotated[int, Ge(1), Le(10**30)]
Natural = Annotated[int, Ge(0), Le(10**30)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
#: Fractions: of a whole, above 0; of what is kept, below 1.
Part = Annotated[float, Gt(0), Le(1)]
Share = Annotated[float, Ge(0), Lt(1)]


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import TypeAdapter

    config: Any = {"strict": True, "allow_inf_nan": False, "arbitrary_types_allowed": True}
    return TypeAdapter(hint, config=config)


def _as_python(value: Any) -> Any:
    """Convert a TOML list to a tuple and a float without a fraction (``1e13``) to an int."""
    if isinstance(value, float) and value.is_integer():
        return int(Decimal(repr(value)))  # int(1e23) would be 10**23 - 8388608
    return tuple(map(_as_python, value)) if isinstance(value, list | tuple) else value


def checked(what: str, value: Any, hint: Any) -> Any:
    """Return ``value`` as an instance of ``hint``: bool, int, float, str, dict, None, Literal, tuple[X,
    ...] and their unions. Lists become tuples. An int is accepted as a float, and a float without a
    fraction as an int; a bool is neither. One value is a list of one. Raises UserError: the value has
    another type or is not finite; the message starts with ``what``."""
    is_list = {get_origin(kind) or kind for kind in get_args(hint | None)} == {tuple, NoneType}
    if is_list and isinstance(value, int | float | str):
        value = [value]
    return check_type(what, _as_python(value), hint)


def check_type(what: str, value: Any, hint: Any) -> Any:
    """Check a value that Python code gives: as `checked`, but a float is never an int and a list never a
    tuple. Raises UserError: the value has another type; the message starts with ``what``."""
    from pydantic import ValidationError

    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        problem = " or ".join(detail["msg"] for detail in error.errors())
        shown = repr(value)
        shown = f"{shown[:77]}..." if len(shown) > 80 else shown
        raise UserError(
            f"{what} is {shown}; {problem.replace('Input', 'it').replace('tuple', 'list')}"
        ) from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def checked_fields(
    where: str, table: Mapping[str, Any], kind: type, *, without: Sequence[str] = ()
) -> dict[str, Any]:
    """Return ``table`` as keyword arguments of the dataclass ``kind``, except the fields in ``without``.
    Raises UserError: an unknown key (with the nearest match) or a wrong type; the message starts with
    ``where``."""
    hints = _hints(kind)
    known = [field.name for field in fields(kind) if field.init and field.name not in without]
    for key in table:
        if key not in known:
            raise UserError(f"{where} has no '{key}'; {known_names(key, known)}")
    return {key: checked(f"{where} {key}", value, hints[key]) for key, value in table.items()}


def built(where: str, table: Mapping[str, Any], kind: type) -> Any:
    """Build the dataclass ``kind`` from ``table``. Raises UserError: an unknown or missing key, a wrong
    type, or a value out of range; the message starts with ``where``."""
    arguments = checked_fields(where, table, kind)
    for field in fields(kind):
        required = field.default is MISSING and field.default_factory is MISSING
        if field.init and required and field.name not in arguments:
            raise UserError(f"{where} needs '{field.name}'; give it a value")
    try:
        return kind(**arguments)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
