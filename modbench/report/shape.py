"""Shapes of JSON objects, checked by pydantic without coercion. Loads no torch."""

import re
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, GetPydanticSchema, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from modbench.errors import UserError

#: The special forms as plain values: shapes are built at runtime, which mypy cannot follow.
list_of: Any = list
optional: Any = NotRequired
_typed_dict: Any = TypedDict

#: Numbers that can be added, divided and drawn without overflow.
COUNT: Any = Annotated[int, Field(ge=0, le=10**30)]
POSITIVE: Any = Annotated[int, Field(ge=1, le=10**30)]
REAL: Any = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]
SECONDS: Any = Annotated[float, Field(gt=0, le=1e30)]
COUNTS: Any = list_of[COUNT]


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


def like(shape: Any) -> GetPydanticSchema:
    """Annotation of a field that has another type for mypy: its value has ``shape``."""
    return GetPydanticSchema(lambda _, handler: handler(shape))


def matching(pattern: re.Pattern[str], words: str) -> Any:
    """The type of a string that matches ``pattern``, described by ``words``."""

    def match(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"it must be {words}")
        return text

    return Annotated[str, AfterValidator(match)]


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
        path = _short(repr((where + "".join(steps)).lstrip("."))[1:-1])
        if first["type"] == "missing":
            raise UserError(f"{path} is missing") from None
        if first["type"] == "extra_forbidden":
            raise UserError(f"{path} is not a known field") from None
        reason = first["msg"].removeprefix("Value error, ").lower()
        raise UserError(f"{path} is {_short(repr(first['input']))}; {reason}") from None


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
