"""What is kept of one run: a line of canonical JSON that is checked when written and when read.

A record's key is the hash of its resolved cell, seed included; a rerun of a cell has the same key.
Standard library only: the process that runs a cell imports this.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from modbench.errors import UserError, known_names
from modbench.metrics import metric
from modbench.report.routing import check_routing
from modbench.report.shape import check, is_of

SCHEMA = 2
Status = Literal["ok", "failed", "oom", "diverged"]
STATUSES: tuple[Status, ...] = get_args(Status)

_NUMBER = (int, float)
_NONE = type(None)
_CELL = {"router": dict, "model": dict, "data": dict, "train": dict, "measure": dict, "seed": int}
_ROUTER = {"name": str, "options": dict, "plugin_sha256": (str, _NONE), "label": str}
_SUITE = {"name": str, "version": int, "rank_by": str}
_CODE = {"version": str, "commit": (str, _NONE), "dirty": (bool, _NONE)}
_DATA = {"sha256": str, "train_tokens": int, "heldout_tokens": int}
VERDICTS = ("passed", "failed", "not asked")
_PROBE = {"probe": int, "name": str, "verdict": str, "figure": str, "ranks": bool}
_TIMED = {"median": _NUMBER, "iqr": _NUMBER, "n": int, "stable": bool}
_POINT = {
    "step": int,
    "flops": int,
    "tokens": int,
    "train_loss": _NUMBER,
    "heldout_loss": _NUMBER,
}
#: Without these nobody could say whether two timings may be compared.
_ENVIRONMENT = {"cpu": (str, _NONE), "gpu": (str, _NONE), "threads": int, "torch": str}


def canonical_json(value: object) -> str:
    """``value`` as JSON in its one canonical form: sorted keys, no spaces, floats that round-trip.

    Raises:
        UserError: something in it is no JSON, or is NaN or infinite; the sentence says where.
    """
    return json.dumps(
        _plain(value, ""), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def cell_key(cell: Mapping[str, Any]) -> str:
    """The key of a record of ``cell``: 16 hexadecimal digits."""
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


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run. Holds a copy, in plain JSON types, of what it is given.

    Raises:
        UserError: a field is not as below, a metric is unknown, a number is not finite, or ``key`` is
            not the key of ``cell``.
    """

    suite: dict[str, Any]  #: name, version, rank_by (the metric that ranks its table)
    cell: dict[str, Any]  #: the resolved cell: router, model, data, train, measure, seed
    key: str  #: cell_key(cell)
    code: dict[str, Any]  #: version, commit, dirty
    environment: dict[str, Any]  #: at least cpu, gpu, threads, torch; no host, user or path
    data: dict[str, Any]  #: sha256, train_tokens, heldout_tokens
    audit: list[dict[str, Any]]  #: probe, name, verdict, figure, ranks (a failure keeps it unranked)
    metrics: dict[str, Any]  #: a number, or {"median", "iqr", "n", "stable"} for the kind ``timed``
    curve: list[dict[str, Any]]  #: step, flops, tokens, train_loss, heldout_loss
    routing: dict[str, Any]  #: as `modbench.report.routing.check_routing` wants it; {}: routes nothing
    status: Status
    error: str | None  #: the sentence of a run that is not ok
    started: str  #: UTC, ISO 8601
    finished: str
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name), f".{field.name}"))
        if not is_of(self.schema, int) or self.schema != SCHEMA:
            raise UserError(
                f"schema is {self.schema!r} and this modbench reads {SCHEMA}; "
                "use the modbench version that wrote it"
            )
        check("suite", self.suite, _SUITE)
        check("code", self.code, _CODE)
        check("data", self.data, _DATA)
        check("environment", self.environment, _ENVIRONMENT, more=True)
        check("cell", self.cell, _CELL)
        check("cell router", self.cell["router"], _ROUTER)
        check("cell train", self.cell["train"], {"budget": int}, more=True)
        if self.key != cell_key(self.cell):
            raise UserError(f"key is {self.key!r} but its cell's key is '{cell_key(self.cell)}'")
        self._check_measured()
        self._check_outcome()

    def _check_measured(self) -> None:
        if not isinstance(self.audit, list) or not isinstance(self.curve, list):
            raise UserError("audit and curve must be lists")
        for index, probe in enumerate(self.audit):
            check(f"audit[{index}]", probe, _PROBE)
            if probe["verdict"] not in VERDICTS:
                raise UserError(
                    f"audit[{index}] verdict '{probe['verdict']}' is not known; "
                    f"{known_names(probe['verdict'], VERDICTS)}"
                )
        for index, point in enumerate(self.curve):
            check(f"curve[{index}]", point, _POINT)
        check_routing(self.routing)
        if not isinstance(self.metrics, dict):
            raise UserError(f"metrics is {self.metrics!r}; it must be an object")
        for name, value in self.metrics.items():
            if metric(name).kind == "timed":
                check(f"metric '{name}'", value, _TIMED)
            elif not is_of(value, _NUMBER):
                raise UserError(f"metric '{name}' is {value!r}; it must be a number")

    def _check_outcome(self) -> None:
        if self.status not in STATUSES:
            raise UserError(f"status '{self.status}' is not known; {known_names(self.status, STATUSES)}")
        if self.status == "ok" and self.error is not None:
            raise UserError(f"status is ok but error is {self.error!r}; an ok run has none")
        if self.status != "ok" and not (isinstance(self.error, str) and self.error.strip()):
            raise UserError(f"status is {self.status} and error is empty; say what happened")
        if _utc("finished", self.finished) < _utc("started", self.started):
            raise UserError(f"finished {self.finished} lies before started {self.started}")

    def line(self) -> str:
        """The record as one line of canonical JSON, without the newline."""
        return canonical_json({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_line(cls, line: str) -> "Record":
        """The record that `line` wrote.

        Raises:
            UserError: the line is no JSON, not canonical (so edited by hand), or no valid record.
        """
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"it is no JSON ({error})") from None
        if not isinstance(value, dict):
            raise UserError("it is no JSON object")
        if value.get("schema") == SCHEMA:
            # A record of another schema may have other fields; its number is what to complain of.
            names = [field.name for field in fields(cls)]
            for name in value:
                if name not in names:
                    raise UserError(f"unknown field '{name}'; {known_names(name, names)}")
            missing = [name for name in names if name not in value]
            if missing:
                raise UserError(f"field '{missing[0]}' is missing")
        else:
            raise UserError(
                f"schema is {value.get('schema')!r} and this modbench reads {SCHEMA}; "
                "use the modbench version that wrote it"
            )
        record = cls(**value)
        if record.line() != line:
            raise UserError("it is not canonical JSON, so something other than modbench wrote it")
        return record

    @property
    def finished_at(self) -> datetime:
        return _utc("finished", self.finished)
