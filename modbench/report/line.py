"""One line of a shard: canonical JSON, checked when written and when read. Loads no torch."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from modbench.errors import UserError


def canonical_json(value: object) -> str:
    """``value`` as JSON in one canonical form: sorted keys, no spaces, floats that round-trip.

    Raises:
        UserError: ``value`` holds NaN or Inf (the sentence gives its path) or is not JSON.
    """
    _refuse_non_finite(value, "")
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        text.encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise UserError(f"a record holds plain JSON only ({error}); convert the value") from error
    return text


def _refuse_non_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where.lstrip('.') or 'value'} is {value}; a record holds finite numbers only")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_non_finite(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_non_finite(item, f"{where}[{index}]")


def cell_key(cell: Mapping[str, Any]) -> str:
    """The key of a cell: the first 16 hexadecimal digits of the hash of its JSON."""
    return hashlib.sha256(canonical_json(cell).encode()).hexdigest()[:16]


def json_object(line: str) -> dict[str, Any]:
    """Parse a line of JSON.

    Raises:
        UserError: it is not a JSON object.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError("it is not a JSON object")
    return value


def check_outcome(status: str, error: Any) -> None:
    """
    Raises:
        UserError: the status contradicts the error.
    """
    if status == "ok" and error is not None:
        raise UserError(f"status is ok but error is {error!r}; an ok run has none")
    if status != "ok" and not (isinstance(error, str) and error.strip()):
        raise UserError(f"status is {status} and error is empty; say what happened")


def _utc(where: str, text: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        moment = datetime.min
    if moment.utcoffset() != timedelta(0):
        raise UserError(f"{where} is {text!r}; it must be a UTC time in ISO 8601, with +00:00")
    return moment


class Line:
    """Base class of frozen dataclasses whose fields are those of a line. A field whose default is None
    is left out of the line while it is None, so lines written before it existed are still read."""

    SCHEMA: ClassVar[int]
    key: str
    started: str
    finished: str
    schema: int

    def hold_copies(self) -> None:
        """Replace each field by a copy in plain JSON types.

        Raises:
            UserError: a field is not JSON.
        """
        for name, value in json.loads(self.line()).items():
            object.__setattr__(self, name, value)

    def check_key(self, part: str) -> None:
        """
        Raises:
            UserError: the key is not that of field ``part``, or the run ends before it starts.
        """
        key = cell_key(getattr(self, part))
        if self.key != key:
            raise UserError(f"key is {self.key!r} but its {part}'s key is '{key}'")
        if _utc("finished", self.finished) < _utc("started", self.started):
            raise UserError(f"finished {self.finished} is earlier than started {self.started}")

    def line(self) -> str:
        """All fields as one line of canonical JSON, without the newline."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        absent = {name for name in self._optional() if values[name] is None}
        return canonical_json({name: value for name, value in values.items() if name not in absent})

    @classmethod
    def _optional(cls) -> set[str]:
        return {field.name for field in fields(cls) if field.default is None}  # type: ignore[arg-type]

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Read what `line` wrote.

        Raises:
            UserError: the line is not JSON, not canonical (edited by hand), or not valid.
        """
        return cls.from_object(json_object(line), line)

    @classmethod
    def from_object(cls, value: dict[str, Any], line: str) -> Self:
        """As `from_line`; ``value`` is the parsed ``line``."""
        # A line of another schema may have other fields; report its number, not those.
        if value.get("schema") != cls.SCHEMA:
            raise UserError(
                f"schema is {value.get('schema')!r} and this modbench reads {cls.SCHEMA}; use the "
                "modbench version that wrote it"
            )
        wrong = value.keys() ^ {field.name for field in fields(cls)}  # type: ignore[arg-type]
        wrong -= cls._optional()
        if wrong:
            raise UserError(f"it lacks a field or has an unknown one: {', '.join(sorted(wrong))}")
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
