"""The record of one run.

Its key is the hash of the resolved cell, seed included, so a rerun of a cell has the same key. The audit
of its scheme is a record of its own (`modbench.report.audit_record`). Loads no torch: the process that
runs a cell imports this.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter

from modbench.report.audit_record import CODE, FINDING
from modbench.report.line import Line, canonical_json, cell_key, check_outcome
from modbench.report.metrics import METRICS, Metric, metric
from modbench.report.routing import check_routing
from modbench.report.shape import at_least, check, closed, list_of, optional

__all__ = ["Record", "Status", "canonical_json", "cell_key"]

Status = Literal["ok", "failed", "oom", "diverged"]

#: Units of metrics that are whole numbers.
_COUNTED = ("steps", "tokens", "parameters", "FLOP")
_TIMED = closed(median=float, iqr=float | None, n=int, stable=bool | None)


def _values(of: Metric) -> Any:
    if of.kind == "timed":
        return _TIMED
    return int if of.unit in _COUNTED else float


_SHAPE = TypeAdapter(
    at_least(
        suite=closed(name=str, version=int, rank_by=str),
        cell=closed(
            router=closed(name=str, options=dict, plugin_sha256=str | None, label=str),
            model=dict,
            data=dict,
            train=at_least(budget=int),
            measure=dict,
            seed=int,
        ),
        code=CODE,
        # Two timings are compared only where these are equal.
        environment=at_least(cpu=str | None, gpu=str | None, threads=int, torch=str),
        data=closed(sha256=str, train_tokens=int, heldout_tokens=int),
        audit_key=str | None,
        audit=list_of[FINDING],
        flops_source=Literal["closed form", "counted"] | None,
        status=Status,
        metrics=closed(**{name: optional[_values(of)] for name, of in METRICS.items()}),
        curve=list_of[closed(step=int, flops=int, tokens=int, train_loss=float, heldout_loss=float)],
    )
)


@dataclass(frozen=True, kw_only=True)
class Record(Line):
    """One run. Holds a copy, in plain JSON types, of its arguments.

    Raises:
        UserError: a field is not as below, a metric is unknown, a number is NaN or Inf, or ``key`` is
            not the key of ``cell``.
    """

    SCHEMA: ClassVar[int] = 2

    suite: dict[str, Any]  #: name, version, rank_by (the metric that ranks its table)
    cell: dict[str, Any]  #: the resolved cell: router, model, data, train, measure, seed
    key: str  #: cell_key(cell)
    code: dict[str, Any]  #: version, commit, dirty
    environment: dict[str, Any]  #: at least cpu, gpu, threads, torch; no host, user or path
    data: dict[str, Any]  #: sha256, train_tokens, heldout_tokens
    #: probe, name, verdict, figure, ranks (a failure prevents ranking): what this cell checked; in
    #: records without ``audit_key``, the whole audit
    audit: list[dict[str, Any]]
    metrics: dict[str, Any]  #: a number, or {"median", "iqr", "n", "stable"} for the kind ``timed``
    curve: list[dict[str, Any]]  #: step, flops, tokens, train_loss, heldout_loss
    routing: dict[str, Any]  #: see `modbench.report.routing`; {} if the model routes nothing
    status: Status
    error: str | None  #: why the run is not ok
    started: str  #: UTC, ISO 8601
    finished: str
    schema: int = 2
    audit_key: str | None = None  #: key of the audit record of its scheme
    flops_source: str | None = None  #: how its FLOPs were found: closed form, counted

    def __post_init__(self) -> None:
        self.hold_copies()
        for name in self.metrics if isinstance(self.metrics, dict) else ():
            metric(name)
        check("", {name: getattr(self, name) for name in _CHECKED}, _SHAPE)
        check_routing(self.routing)
        self.check_key("cell")
        check_outcome(self.status, self.error)


_CHECKED = (
    *("suite", "cell", "code", "environment", "data", "audit_key", "audit", "flops_source"),
    *("status", "metrics", "curve"),
)
