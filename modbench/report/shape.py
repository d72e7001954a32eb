"""Shapes of JSON objects, checked by pydantic without coercion. Loads no torch."""

from typing import Any, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from modbench.errors import UserError

#: The special forms as plain values: shapes are built at runtime, which mypy cannot follow.
list_of: Any = list
optional: Any = NotRequired
_typed_dict: Any = TypedDict


def closed(**fields: Any) -> Any:
    """The type of an object with exactly these fields."""
    return _object(fields, ConfigDict(strict=True, extra="forbid"))


def at_least(**fields: Any) -> Any:
    """The type of an object with these fields and any others."""
    return _object(fields, ConfigDict(strict=True, extra="allow"))


def _object(fields: dict[str, Any], config: ConfigDict) -> Any:
    kind = _typed_dict("Object", fields)
    kind.__pydantic_config__ = config
    return kind


def check(where: str, value: Any, shape: TypeAdapter[Any]) -> None:
    """Validate ``value``; ``where`` is the path of ``value`` itself, empty at the top.

    Raises:
        UserError: a field is missing, unknown or of another type; the sentence gives its path.
    """
    try:
        shape.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
        path = (where + "".join(steps)).lstrip(".")
        if first["type"] == "missing":
            raise UserError(f"{path} is missing") from None
        if first["type"] == "extra_forbidden":
            raise UserError(f"{path} is not a known field") from None
        raise UserError(f"{path} is {first['input']!r}; {first['msg'].lower()}") from None
