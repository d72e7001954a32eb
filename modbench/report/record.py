"""What is kept of one run: a line of canonical JSON that is checked when written and when read.

A record's key is the hash of its resolved cell, seed included; a rerun of a cell has the same key.
Standard library only: the process that runs a cell imports this.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from modbench.errors import UserError, known_names
from modbench.report.line import Line, canonical_json, cell_key
from modbench.report.metrics import metric
from modbench.report.routing import check_routing
from modbench.report.shape import check, is_of

__all__ = ["SCHEMA", "STATUSES", "Record", "Status", "canonical_json", "cell_key"]

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
#: Beyond this is no measurement, and sums of squares overflow.
MOST = 10**100
#: What is counted one by one.
_COUNTED = ("steps", "tokens", "parameters", "FLOP")
VERDICTS = ("passed", "failed", "not asked", "unchecked")
_PROBE = {"probe": int, "name": str, "verdict": str, "figure": str, "ranks": bool}
_TIMED = {"median": _NUMBER, "iqr": (*_NUMBER, _NONE), "n": int, "stable": (bool, _NONE)}
_POINT = {
    "step": int,
    "flops": int,
    "tokens": int,
    "train_loss": _NUMBER,
    "heldout_loss": _NUMBER,
}
#: Without these nobody could say whether two timings may be compared.
_ENVIRONMENT = {"cpu": (str, _NONE), "gpu": (str, _NONE), "threads": int, "torch": str}


@dataclass(frozen=True, kw_only=True)
class Record(Line):
    """One run. Holds a copy, in plain JSON types, of what it is given.

    Raises:
        UserError: a field is not as below, a metric is unknown, a number is not finite or beyond
            `MOST`, or ``key`` is not the key of ``cell``.
    """

    SCHEMA: ClassVar[int] = SCHEMA
    STATUSES: ClassVar[tuple[str, ...]] = STATUSES

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
        self.hold_copies()
        check("suite", self.suite, _SUITE)
        check("code", self.code, _CODE)
        check("data", self.data, _DATA)
        check("environment", self.environment, _ENVIRONMENT, more=True)
        check("cell", self.cell, _CELL)
        check("cell router", self.cell["router"], _ROUTER)
        check("cell train", self.cell["train"], {"budget": int}, more=True)
        _check_size("cell train budget", self.cell["train"]["budget"])
        if self.key != cell_key(self.cell):
            raise UserError(f"key is {self.key!r} but its cell's key is '{cell_key(self.cell)}'")
        self._check_measured()
        self.check_outcome()

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
            for name, value in point.items():
                _check_size(f"curve[{index}] {name}", value)
        check_routing(self.routing)
        if not isinstance(self.metrics, dict):
            raise UserError(f"metrics is {self.metrics!r}; it must be an object")
        for name, value in self.metrics.items():
            if metric(name).kind == "timed":
                check(f"metric '{name}'", value, _TIMED)
                for part in ("median", "iqr", "n"):
                    _check_size(f"metric '{name}' {part}", value[part] or 0)
                continue
            if not is_of(value, _NUMBER):
                raise UserError(f"metric '{name}' is {value!r}; it must be a number")
            if metric(name).unit in _COUNTED and not is_of(value, int):
                raise UserError(f"metric '{name}' is {value!r}; it must be a whole number")
            _check_size(f"metric '{name}'", value)


def _check_size(where: str, value: float) -> None:
    if not -MOST <= value <= MOST:
        size = f"{value:.3g}" if isinstance(value, float) else f"of {value.bit_length()} bits"
        raise UserError(f"{where} is {size}; it must lie within {MOST:.0e} of 0")
