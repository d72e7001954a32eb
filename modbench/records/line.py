"""Parts that all records share: a line of canonical JSON, its key and digest, types of numbers, and the
sentence on what is wrong. Loads no torch."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, NotRequired, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    TypeAdapter,
    ValidationError,
    model_validator,
    with_config,
)
from pydantic_core import core_schema
from typing_extensions import TypedDict

from modbench.errors import UserError, printable
from modbench.records.names import LABEL, LABEL_WORDS, NAME

#: Version of the lines.
SCHEMA = 4
#: Configuration of JSON objects that may have further fields.
OPEN = ConfigDict(strict=True, extra="allow")
_Made = TypeVar("_Made", bound="Record")
_Checked = TypeVar("_Checked")


class Part(BaseModel):
    """Base of records and their sections: JSON with exactly these fields, of exactly these types. A
    field whose default is None may be missing."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _number(**limits: Any) -> Any:
    """Annotation of a number within ``limits`` that stays an int if its JSON is one."""
    kinds = [core_schema.int_schema(**limits), core_schema.float_schema(**limits, allow_inf_nan=False)]
    wrong = "Input should be a finite number, at most 1e30" + ", above 0" * ("gt" in limits)
    union = core_schema.union_schema(
        list(kinds), mode="left_to_right", custom_error_type="number", custom_error_message=wrong
    )
    return GetPydanticSchema(lambda *_: union)


#: Numbers that can be added, divided and drawn without overflow.
Count = Annotated[int, Field(ge=0, le=10**30)]
Positive = Annotated[int, Field(ge=1, le=10**30)]
Real = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]
Number = Annotated[int | float, _number(ge=-(10**30), le=10**30)]
AboveZero = Annotated[int | float, _number(gt=0, le=10**30)]


def matching(pattern: re.Pattern[str], words: str) -> AfterValidator:
    """Annotation of a string that matches ``pattern``, described by ``words``."""

    def match(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"it must be {words}")
        return text

    return AfterValidator(match)


def sentence(error: ValidationError, where: str = "") -> str:
    """The first problem of ``error`` with its path, which begins with ``where``."""
    first = error.errors(include_url=False)[0]
    value, kind = first["input"], first["type"]
    if kind == "json_invalid":
        return f"it is not JSON ({first['ctx']['error']})"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"kind is {str(value.get('kind'))[:60]!r}; known: run, measurement, suite, audit, timing"
    loc = first["loc"][error.title.startswith("tagged-union") :]  # that of a union begins with its kind
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)
    path = _short(repr((where + "".join(steps)).lstrip("."))[1:-1])
    if kind == "missing":
        return f"{path} is missing"
    if kind == "extra_forbidden":
        return f"{path} is not a known field"
    reason = first["msg"].removeprefix("Value error, ").replace("Input", "input")
    if kind == "value_error" and isinstance(value, dict):  # of its fields; it may begin with their path
        return f"{path}{reason}".lstrip(".") if reason[0] == "." or not path else f"{path}: {reason}"
    return f"{path} is {_short(repr(value))}; {reason}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def check(where: str, value: Any, shape: TypeAdapter[_Checked]) -> _Checked:
    """The plain JSON ``value`` as ``shape``; ``where`` is its path. Raises UserError: a field is
    missing, unknown or of another type; the sentence gives its path."""
    try:
        return shape.validate_json(json.dumps(value))
    except ValidationError as error:
        raise UserError(sentence(error, where)) from None


def as_json(part: BaseModel) -> dict[str, Any]:
    """``part`` as it stands in its line. Raises TypeError: it is no part of a record."""
    if not isinstance(part, BaseModel):
        raise TypeError(f"{type(part).__name__} is no JSON")
    return part.model_dump(exclude_unset=True)


_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=as_json
)


def canonical_json(value: object) -> str:
    """``value`` as JSON in one canonical form: sorted keys, no spaces, floats that round-trip. Raises
    UserError: ``value`` holds NaN or Inf, or is not JSON."""
    try:
        text = _CANONICAL.encode(value)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"a record holds plain JSON and finite numbers only ({error})") from error
    return text


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(subject: Mapping[str, Any] | BaseModel) -> str:
    """The key of what a record is about: the first 16 hexadecimal digits of the hash of its JSON."""
    return sha256(canonical_json(subject))[:16]


Name = Annotated[str, matching(NAME, "lower-case letters, digits, '_', '-' and '.'")]
Label = Annotated[str, matching(LABEL, LABEL_WORDS)]


def _utc(text: str) -> str:
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except ValueError:
        offset = None
    if offset != timedelta(0):
        raise ValueError("it must be a UTC time in ISO 8601, with +00:00")
    return text


Time = Annotated[str, AfterValidator(_utc)]


class Code(TypedDict):
    version: str
    commit: str | None
    dirty: bool | None


@with_config(OPEN)
class Environment(TypedDict):
    """Of the process that measured; no host, user or path."""

    cpu: str | None
    gpu: str | None
    threads: Annotated[int, Field(ge=0, le=4096)]
    torch: str
    kernels: NotRequired[Literal["plain", "fast"]]


class Record(Part):
    """Base of all records, which are built by `made` or `parsed`."""

    __slots__ = ("_line",)  # no private attribute, which would take microseconds to set
    about: ClassVar[str]  #: the field that ``key`` is the hash of

    schema_version: Literal[4] = Field(alias="schema")
    digest: str  #: SHA-256 of the line in which it is empty
    key: str
    code: Code
    environment: Environment
    started: Time  #: UTC, ISO 8601
    finished: Time

    @classmethod
    def made(cls, **fields: Any) -> Self:
        """The record with ``fields``: plain JSON, or parts of other records. Raises UserError: a field
        is not as declared, a number is NaN or Inf, or ``key`` is not the key of its subject."""
        kind = get_args(cls.model_fields["kind"].annotation)[0]
        may_lack = {name for name, field in cls.model_fields.items() if not field.is_required()}
        values = {name: of for name, of in fields.items() if of is not None or name not in may_lack}
        line = canonical_json(values | {"kind": kind, "schema": SCHEMA, "digest": ""})
        signed = line.replace('"digest":""', f'"digest":"{sha256(line)}"', 1)
        return parsed(signed.encode(), cls.model_validate_json)

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        key = key_of(getattr(self, self.about))
        if self.key != key:
            raise ValueError(f"key is {self.key[:60]!r} but its {self.about}'s key is '{key}'")
        return self

    def line(self) -> str:
        """The line that it was read from or is written as, without the newline."""
        raw: bytes = object.__getattribute__(self, "_line")
        return raw.decode()

    @property
    def started_at(self) -> datetime:
        return datetime.fromisoformat(self.started)

    @property
    def finished_at(self) -> datetime:
        return datetime.fromisoformat(self.finished)


Status = Literal["ok", "failed", "oom", "diverged"]


class Outcome(Record):
    """Base of records of what may fail."""

    status: Status
    error: str | None  #: why it is not ok

    @model_validator(mode="after")
    def _check_outcome(self) -> Self:
        if self.status == "ok" and self.error is not None:
            raise ValueError(f"status is ok but error is {self.error[:60]!r}; an ok run has none")
        if self.status != "ok" and not (self.error and self.error.strip()):
            raise ValueError(f"status is {self.status} and error is empty; say what happened")
        return self


def parsed(line: bytes, validate: Callable[[bytes], _Made]) -> _Made:
    """The record that ``validate`` makes of ``line``, whose digest is checked on the line as read; its
    texts are in printable characters. Raises UserError: the line is not JSON in UTF-8, was changed
    after it was written, is of another schema or kind, or a field is not as its class declares."""
    match = _DIGEST.search(line)
    unsigned = line[: match.start(1)] + line[match.end(1) :] if match else b""
    if match is None or hashlib.sha256(unsigned).hexdigest().encode() != match[1]:
        raise UserError(_fault(line) or _CHANGED)
    try:
        record = validate(_printable_json(line))
    except ValidationError as error:
        raise UserError(_fault(line) or sentence(error)) from None
    except RecursionError:
        raise UserError("its values are nested too deeply") from None
    if record.digest.encode() != match[1]:
        raise UserError(_CHANGED)
    object.__setattr__(record, "_line", line)
    return record


_CHANGED = "its digest is of another line; it was changed after it was written"
_DIGEST = re.compile(rb'"digest":"([0-9a-f]{64})"')


def _fault(line: bytes) -> str | None:
    """Return the fault of ``line`` as a whole; None if a single field is at fault."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return "it is not UTF-8"
    except (ValueError, RecursionError) as error:
        return f"it is not JSON ({error})"
    if not isinstance(value, dict):
        return "it is not a JSON object"
    if value.get("schema") != SCHEMA:
        found = repr(value.get("schema"))[:50]
        return f"schema is {found}, this modbench reads {SCHEMA}; use the one that wrote it"
    return None


#: Control characters in the bytes of JSON: as escape sequences, and those above ASCII.
_ESCAPED = re.compile(rb"\\(?:u00|[bfr])")
_C1 = re.compile(rb"\xc2[\x80-\x9f]")


def _printable_json(line: bytes) -> bytes:
    """The JSON ``line`` with the control characters of all texts made printable."""

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {printable(name): shown(of) for name, of in value.items()}
        if isinstance(value, list):
            return [shown(of) for of in value]
        return printable(value) if isinstance(value, str) else value

    if not _ESCAPED.search(line) and b"\x7f" not in line and not _C1.search(line):
        return line
    return json.dumps(shown(json.loads(line))).encode()
