"""The shape of plain JSON: which fields an object has, and of which types."""

from collections.abc import Mapping
from typing import Any

from modbench.errors import UserError, known_names


def is_of(value: Any, types: Any) -> bool:
    """isinstance, where a boolean is no number."""
    types = types if isinstance(types, tuple) else (types,)
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def check(where: str, value: Any, shape: Mapping[str, Any], *, more: bool = False) -> None:
    """Refuse a ``value`` that isn't a dict with the fields of ``shape`` (``more``: at least).

    Raises:
        UserError: it isn't; the sentence says what of ``where`` is wrong.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where} is {value!r}; it must be an object")
    for name in value:
        if name not in shape and not more:
            raise UserError(f"{where} has the unknown field '{name}'; {known_names(name, shape)}")
    for name, types in shape.items():
        if name not in value:
            raise UserError(f"{where} lacks the field '{name}'")
        if not is_of(value[name], types):
            wanted = [kind.__name__ for kind in (types if isinstance(types, tuple) else (types,))]
            raise UserError(
                f"{where} field '{name}' is {value[name]!r}; it must be of type {' or '.join(wanted)}"
            )
