"""A line of a shard: canonical JSON that is checked when written and when read. Standard library only:
the processes that measure import this."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Self

from modbench.errors import UserError, known_names
from modbench.report.shape import is_of


def canonical_json(value: object) -> str:
    """``value`` as JSON in its one canonical form: sorted keys, no spaces, floats that round-trip.

    Raises:
        UserError: something in it is no JSON, or is NaN or infinite; the sentence says where.
    """
    return json.dumps(
        _plain(value, ""), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def cell_key(cell: Mapping[str, Any]) -> str:
    """The key of what was measured of ``cell``: 16 hexadecimal digits."""
    return hashlib.sha256(canonical_json(cell).encode()).hexdigest()[:16]


def _plain(value: Any, where: str) -> Any:
    """A copy of ``value`` in dicts, lists, strings, numbers, booleans and None alone."""
    place = where.lstrip(".") or "value"
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UserError(f"{place} has the key {key!r}; keys must be strings")
            _plain(key, f"{where}.{key!r}")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{place} is {value!r}, which is no valid Unicode; mend the text") from None
        return str(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{place} is {value}; a record holds finite numbers only")
        return float(value)
    raise UserError(
        f"{place} is of type {type(value).__name__}; a record holds plain JSON types only, convert it"
    )


def _utc(where: str, text: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise UserError(f"{where} is {text!r}; it must be a UTC time in ISO 8601") from None
    if moment.utcoffset() != timedelta(0):
        raise UserError(f"{where} is {text!r}; it must say that it is UTC (+00:00)")
    return moment.astimezone(UTC)


class Line:
    """What a frozen dataclass inherits whose fields are a line's. It has ``status``, ``error``,
    ``started``, ``finished`` and ``schema``, which is its class's ``SCHEMA``."""

    SCHEMA: ClassVar[int]
    STATUSES: ClassVar[Sequence[str]]
    status: Any
    error: str | None
    started: str
    finished: str
    schema: int

    def hold_copies(self) -> None:
        """Replace each field by a copy in plain JSON types.

        Raises:
            UserError: one is no JSON, or the schema is another.
        """
        for field in fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, field.name, _plain(getattr(self, field.name), f".{field.name}"))
        if not is_of(self.schema, int) or self.schema != self.SCHEMA:
            raise UserError(_other_schema(self.schema, self.SCHEMA))

    def check_outcome(self) -> None:
        """
        Raises:
            UserError: an unknown status, one that the error doesn't fit, or times that can't be.
        """
        if self.status not in self.STATUSES:
            raise UserError(
                f"status '{self.status}' is not known; {known_names(self.status, self.STATUSES)}"
            )
        if self.status == "ok" and self.error is not None:
            raise UserError(f"status is ok but error is {self.error!r}; an ok run has none")
        if self.status != "ok" and not (isinstance(self.error, str) and self.error.strip()):
            raise UserError(f"status is {self.status} and error is empty; say what happened")
        if _utc("finished", self.finished) < _utc("started", self.started):
            raise UserError(f"finished {self.finished} lies before started {self.started}")

    def line(self) -> str:
        """All of it as one line of canonical JSON, without the newline."""
        return canonical_json({field.name: getattr(self, field.name) for field in fields(self)})  # type: ignore[arg-type]

    @classmethod
    def from_line(cls, line: str) -> Self:
        """What `line` wrote.

        Raises:
            UserError: the line is no JSON, not canonical (so edited by hand), or not valid.
        """
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"it is no JSON ({error})") from None
        if not isinstance(value, dict):
            raise UserError("it is no JSON object")
        if value.get("schema") != cls.SCHEMA:
            # A line of another schema may have other fields; its number is what to complain of.
            raise UserError(_other_schema(value.get("schema"), cls.SCHEMA))
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        for name in value:
            if name not in names:
                raise UserError(f"unknown field '{name}'; {known_names(name, names)}")
        missing = [name for name in names if name not in value]
        if missing:
            raise UserError(f"field '{missing[0]}' is missing")
        found = cls(**value)
        if found.line() != line:
            raise UserError("it is not canonical JSON, so something other than modbench wrote it")
        return found

    @property
    def started_at(self) -> datetime:
        return _utc("started", self.started)

    @property
    def finished_at(self) -> datetime:
        return _utc("finished", self.finished)


def _other_schema(found: Any, known: int) -> str:
    return f"schema is {found!r} and this modbench reads {known}; use the modbench version that wrote it"
