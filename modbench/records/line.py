"""Base of all records: one line of canonical JSON, a key, a digest, and shapes of JSON objects that
pydantic checks without coercion. Loads no torch."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NotRequired, Self, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, GetPydanticSchema, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from modbench.errors import UserError, printable

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
    """Validate ``value``; ``where`` is the path of ``value`` itself, empty at the top. Raises UserError:
    a field is missing, unknown or of another type; the sentence gives its path."""
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
        reason = first["msg"].removeprefix("Value error, ").replace("Input", "input")
        raise UserError(f"{path} is {_short(repr(first['input']))}; {reason}") from None


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


#: Version of the lines written now.
SCHEMA = 4

CODE = closed(version=str, commit=str | None, dirty=bool | None)
ENVIRONMENT: Any = {
    "cpu": str | None,
    "gpu": str | None,
    "threads": Annotated[int, Field(ge=0, le=4096)],
    "torch": str,
    "kernels": optional[Literal["plain", "fast"]],
}


def canonical_json(value: object) -> str:
    """``value`` as JSON in one canonical form: sorted keys, no spaces, floats that round-trip. Raises
    UserError: ``value`` holds NaN or Inf, or is not JSON."""
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"a record holds plain JSON and finite numbers only ({error})") from error
    return text


#: Start of the escape sequence of a control character in JSON.
_ESCAPED = re.compile(r"\\(?:u00|[bfr])")


def printable_values(line: str, value: Any) -> Any:
    """The ``value`` of the JSON ``line`` with the control characters of all texts made printable."""

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {printable(name): shown(of) for name, of in value.items()}
        if isinstance(value, list):
            return [shown(of) for of in value]
        return printable(value) if isinstance(value, str) else value

    return value if line.isprintable() and not _ESCAPED.search(line) else shown(value)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(subject: Mapping[str, Any]) -> str:
    """The key of what a record is about: the first 16 hexadecimal digits of the hash of its JSON."""
    return sha256(canonical_json(subject))[:16]


def _utc(text: str) -> str:
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except ValueError:
        offset = None
    if offset != timedelta(0):
        raise ValueError("it must be a UTC time in ISO 8601, with +00:00")
    return text


@dataclass(frozen=True, kw_only=True)
class Line:
    """Base class of records. Holds a copy, in plain JSON types, of its arguments. A field whose default
    is None is left out of the line while it is None. Raises UserError: a field is not as declared, a
    number is NaN or Inf, or ``key`` is not the key of what was run."""

    kind: ClassVar[str]
    subject: ClassVar[str]  #: the field that ``key`` is the hash of

    key: str
    code: Annotated[dict[str, Any], like(CODE)]
    #: of the process that measured; no host, user or path
    environment: Annotated[dict[str, Any], like(at_least(**ENVIRONMENT))]
    started: Annotated[str, AfterValidator(_utc)]  #: UTC, ISO 8601
    finished: Annotated[str, AfterValidator(_utc)]

    def __post_init__(self) -> None:
        try:
            values = json.loads(json.dumps(self._fields()))
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"a record holds plain JSON only ({error}); convert the value") from error
        kind: Any = type(self)
        check("", values, shape_of(kind))
        self._set(values)

    @classmethod
    def read(cls, values: Mapping[str, Any], line: str) -> Self:
        """The record of ``line``, canonical JSON whose digest was checked, with the fields ``values``.
        Raises UserError: see the class."""
        kind: Any = cls
        check("", values, shape_of(kind))
        record = cls.__new__(cls)
        defaults = {field.name: None for field in fields(kind) if field.default is None}
        record._set(defaults | dict(values))
        object.__setattr__(record, "_read_from", line)
        return record

    def _set(self, values: Mapping[str, Any]) -> None:
        """Set the fields to checked ``values``."""
        for name, value in values.items():
            object.__setattr__(self, name, value)
        key = key_of(values[self.subject])
        if self.key != key:
            raise UserError(f"key is {self.key!r} but its {self.subject}'s key is '{key}'")
        self._check()

    def _check(self) -> None:
        """Check constraints that field types cannot express."""

    def _fields(self) -> dict[str, Any]:
        values = {field: getattr(self, field.name) for field in fields(self)}
        return {of.name: v for of, v in values.items() if v is not None or of.default is not None}

    def line(self) -> str:
        """The record as one line of canonical JSON, without the newline."""
        read_from: str | None = self.__dict__.get("_read_from")
        return read_from or canonical_json(self._unsigned() | {"digest": self.digest})

    def _unsigned(self) -> dict[str, Any]:
        return self._fields() | {"kind": self.kind, "schema": SCHEMA, "digest": ""}

    @property
    def digest(self) -> str:
        """SHA-256 of the line in which the digest is empty."""
        return sha256(canonical_json(self._unsigned()))

    @property
    def started_at(self) -> datetime:
        return datetime.fromisoformat(self.started)

    @property
    def finished_at(self) -> datetime:
        return datetime.fromisoformat(self.finished)


@cache
def shape_of(kind: Any) -> TypeAdapter[Any]:
    """The fields of a class of records; those whose default is None may be missing."""
    types = get_type_hints(kind, include_extras=True)
    may_lack = {field.name for field in fields(kind) if field.default is None}
    types = {field.name: types[field.name] for field in fields(kind)}
    return TypeAdapter(
        closed(**{name: optional[of] if name in may_lack else of for name, of in types.items()})
    )


def check_outcome(status: str, error: str | None) -> None:
    if status == "ok" and error is not None:
        raise UserError(f"status is ok but error is {error[:60]!r}; an ok run has none")
    if status != "ok" and not (error and error.strip()):
        raise UserError(f"status is {status} and error is empty; say what happened")
