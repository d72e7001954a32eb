"""Records: one line of canonical JSON each, checked when written and when read.

A record is of a kind: a cell that was trained and measured, the audit of a scheme, or a process of
`modbench time`. Its key is the hash of what was run; its digest is the hash of the line itself, so that
a damaged or edited line is refused. Loads no torch: the process that runs a cell imports this.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter

from modbench.errors import UserError
from modbench.records.downstream import DOWNSTREAM
from modbench.records.line import (
    COUNT,
    ENVIRONMENT,
    POSITIVE,
    REAL,
    SCHEMA,
    SECONDS,
    Line,
    at_least,
    canonical_json,
    cell_key,
    check,
    check_outcome,
    closed,
    like,
    list_of,
    matching,
    optional,
    sha256,
    shape_of,
)
from modbench.records.metrics import METRICS
from modbench.records.names import LABEL, LABEL_WORDS, NAME, ROW_LABEL
from modbench.records.routing import check_routing

__all__ = [
    "AnyRecord",
    "AuditRecord",
    "CellRecord",
    "Measurement",
    "Status",
    "TimingRecord",
    "canonical_json",
    "cell_key",
    "parse_line",
    "read_record",
]

#: Versions of the lines that had no digest, by kind.
_UNSIGNED = {"cell": 2, "audit": 1, "timing": 1}

Status = Literal["ok", "failed", "oom", "diverged"]
#: Statuses of a cell that is done; a failed cell is run again.
DONE = frozenset({"ok", "diverged", "oom"})
TimingStatus = Literal["ok", "failed", "oom"]
Measurement = Literal["time", "ceiling", "training_memory", "inference_memory"]

_NAME: Any = matching(NAME, "lower-case letters, digits, '_', '-' and '.'")
_LABEL: Any = matching(LABEL, LABEL_WORDS)
_ROW_LABEL: Any = matching(ROW_LABEL, f"{LABEL_WORDS}; or two of them with a '/' between")
_ROUTER = closed(name=_LABEL, options=dict, plugin_sha256=str | None, label=_ROW_LABEL)
_VERDICT = Literal["passed", "failed", "not asked", "unchecked"]
#: One probe of an audit; ``ranks``: a failure prevents ranking.
_FINDING = closed(probe=int, name=str, verdict=_VERDICT, figure=str, ranks=bool)
_TIMED = closed(
    median=REAL,
    iqr=REAL | None,
    n=POSITIVE,
    stable=bool | None,
    loaded=optional[bool],  #: the machine's load exceeded its cores
    threads=optional[POSITIVE],
)
#: Units of metrics that are whole numbers.
_COUNTED = ("steps", "tokens", "parameters", "FLOP")
_METRICS = closed(
    **{
        name: optional[_TIMED if of.kind == "timed" else COUNT if of.unit in _COUNTED else REAL]
        for name, of in METRICS.items()
    }
)
_CELL = closed(
    router=_ROUTER,
    model=dict,
    data=dict,
    train=at_least(budget=POSITIVE, sequence=optional[POSITIVE | None]),
    measure=at_least(
        heldout_tokens=optional[POSITIVE | None],
        downstream=optional[list[str]],
        downstream_limit=optional[POSITIVE | None],
        downstream_fewshot=optional[COUNT | None],
        downstream_data=optional[str | None],
        downstream_include=optional[str | None],
        downstream_checkpoints=optional[POSITIVE | None],
    ),
    seed=int,
)
_DATA = closed(sha256=str, train_tokens=COUNT, heldout_tokens=COUNT)
_POINT = closed(step=COUNT, flops=COUNT, tokens=COUNT, train_loss=REAL, heldout_loss=REAL)
_STEPS: Any = dict[_NAME, Annotated[float, Field(ge=0, le=1e30)]]


#: What a routed layer does to the held-out tokens that it selects under the causal rule.
_ROUTED_LAYER = closed(
    layer=Annotated[int, Field(ge=0, le=9999)],
    added=optional[REAL],  #: mean norm of its update over that of the residual stream; 0 without tokens
    gate_scale=optional[REAL],  #: mean magnitude of the gate
)


#: Learning rates of an isoFLOP suite; see `modbench.sweep.isoflop.stated`.
_ISOFLOP = closed(
    learning_rates=list_of[SECONDS],
    extensions=COUNT,
    exponent=REAL,
    margin=SECONDS,
    middle_width=POSITIVE,
    middle_budget=POSITIVE,
    seed=int,
    seed_on_curve=optional[bool],  # absent: true
    sizes=optional[POSITIVE],
)
_SUITE = closed(name=_NAME, version=int, rank_by=_NAME, isoflop=optional[_ISOFLOP])


@dataclass(frozen=True, kw_only=True)
class CellRecord(Line):
    """One run of a cell. A rerun has the same key. The audit of its scheme is a record of its own."""

    kind: ClassVar[str] = "cell"

    #: ``rank_by`` is the metric that ranks the suite's table
    suite: Annotated[dict[str, Any], like(_SUITE)]
    cell: Annotated[dict[str, Any], like(_CELL)]  #: the resolved cell
    data: Annotated[dict[str, Any], like(_DATA)]
    #: what this cell checked; in records without ``audit_key``, the whole audit
    audit: Annotated[list[dict[str, Any]], like(list_of[_FINDING])]
    metrics: Annotated[dict[str, Any], like(_METRICS)]
    curve: Annotated[list[dict[str, Any]], like(list_of[_POINT])]
    routing: dict[str, Any]  #: see `modbench.records.routing`; {} if the model routes nothing
    status: Status
    error: str | None  #: why the run is not ok
    audit_key: str | None = None  #: key of the audit record of its scheme
    #: how its FLOPs were found
    flops_source: Annotated[str, like(Literal["closed form", "counted"])] | None = None
    seconds: Annotated[dict[str, float], like(_STEPS)] | None = None  #: wall time of each step
    #: scores by task, see `modbench.records.downstream`
    downstream: Annotated[dict[str, Any], like(DOWNSTREAM)] | None = None
    #: the routed layers; older records have the mean of all gates, the metric ``gate_scale``
    layers: Annotated[list[dict[str, Any]], like(list_of[_ROUTED_LAYER])] | None = None

    def _check(self) -> None:
        check_routing(self.routing)
        check_outcome(self.status, self.error)


_SCHEME = closed(
    router=closed(name=_LABEL, options=dict, code_sha256=str | None),
    model=dict,
    shapes=list_of[list_of[int]],  #: (sequences, tokens) of each
    trained=list_of[int],  #: shape of a training step
    torch=str,
    modbench=str,
    device=str,
)


@dataclass(frozen=True, kw_only=True)
class AuditRecord(Line):
    """The audit of one scheme. The cells of all seeds and budgets refer to it by key."""

    kind: ClassVar[str] = "audit"
    subject: ClassVar[str] = "scheme"

    scheme: Annotated[dict[str, Any], like(_SCHEME)]  #: what the findings depend on
    audit: Annotated[list[dict[str, Any]], like(list_of[_FINDING])]


_TIMED_CELL = closed(
    router=_ROUTER | None,
    model=dict,
    train=at_least(sequence=POSITIVE, batch=POSITIVE, precision=str),
    time=dict,
)
_MEASURING = at_least(**ENVIRONMENT, dtype=str, variables=optional[dict[str, str]])
_FLOPS = at_least(model=COUNT, executed=COUNT)
_GPU = at_least(throttled=list[str]) | None
_MACHINE = at_least(overloaded=bool)
_ASKED: dict[str, Any] = {
    "name": str,
    "phase": Literal["forward", "train", "prefill", "decode"],
    "sequences": POSITIVE,
    "tokens": POSITIVE,
    "past": COUNT,
}
_CASE = closed(
    **_ASKED,
    seconds=Annotated[list[SECONDS], Field(min_length=1)],
    loops=POSITIVE,
    flops=closed(nominal=_FLOPS, realised=_FLOPS, dispatched=_FLOPS),
    joules=REAL | None,
    gpu=_GPU,
)
_RAN_OUT = closed(**_ASKED, asked_bytes=COUNT | None, error=str)
_TIMES = closed(
    cases=list_of[_CASE],
    balance=str,
    compiled=bool,
    machine=_MACHINE,
    ran_out=optional[list_of[_RAN_OUT]],
)
_GEMM = at_least(dtype=str, component=str, rows=int, inner=int, columns=int, flops_per_second=SECONDS)
_CEILING = closed(gemm=list_of[_GEMM], copy_bytes_per_second=SECONDS, machine=_MACHINE, gpu=_GPU)
_BYTES: Any = dict[str, Annotated[int, Field(ge=-(10**30), le=10**30)]]
_MEMORY = closed(measured=_BYTES, predicted=_BYTES)
_MEASURED = {
    "time": TypeAdapter(_TIMES),
    "ceiling": TypeAdapter(_CEILING),
    "training_memory": TypeAdapter(_MEMORY),
    "inference_memory": TypeAdapter(_MEMORY),
}


@dataclass(frozen=True, kw_only=True)
class TimingRecord(Line):
    """One process of `modbench time`.

    A run is what one call started and later calls continued: each scheme in several processes, its
    memory in one process each, and the machine's ceilings. Only records of one run are compared.
    """

    kind: ClassVar[str] = "timing"

    run: Annotated[str, like(_LABEL)]
    suite: Annotated[dict[str, Any], like(closed(name=_NAME, version=int))]
    measurement: Measurement
    cell: Annotated[dict[str, Any], like(_TIMED_CELL)]  #: its router is null for a ceiling
    repetition: int  #: from 1
    environment: Annotated[dict[str, Any], like(_MEASURING)]
    #: what the process measured; if not ok: {}, or the cases that could be timed
    measured: dict[str, Any]
    asked_bytes: Annotated[int, like(COUNT)] | None  #: size of the allocation that failed, if known
    status: TimingStatus
    error: str | None

    def _check(self) -> None:
        if (self.cell["router"] is None) != (self.measurement == "ceiling"):
            raise UserError(
                f"measurement is {self.measurement}; a ceiling has no router, every other one has"
            )
        if self.status == "ok" or (self.measured and self.measurement == "time"):
            check("measured", self.measured, _MEASURED[self.measurement])
            if self.measurement.endswith("memory"):
                parts = set(self.measured["measured"])
                if "peak" not in parts or parts != set(self.measured["predicted"]):
                    raise UserError("measured and predicted differ in their parts, or lack the peak")
        check_outcome(self.status, self.error)

    @property
    def job(self) -> tuple[str, str, int]:
        """Its place in the run: measurement, key, repetition."""
        return self.measurement, self.key, self.repetition


AnyRecord = CellRecord | AuditRecord | TimingRecord
_KINDS: dict[str, type[AnyRecord]] = {
    kind.kind: kind for kind in (CellRecord, AuditRecord, TimingRecord)
}


def parse_line(line: str) -> dict[str, Any]:
    """The fields of ``line``, ``kind`` included and ``digest`` checked. Those of lines written before
    records had a digest are given their present names. The fields themselves are not checked. Raises
    UserError: it is not a JSON object, of an unknown schema or kind, or it was changed after it was
    written."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError("it is not a JSON object")
    schema, digest = value.pop("schema", None), value.pop("digest", None)
    if schema == SCHEMA or (digest is not None and schema in _UNSIGNED.values()):
        if digest != sha256(line.replace(f'"digest":"{digest}"', '"digest":""', 1)):
            raise UserError("its digest is of another line; it was changed after it was written")
    else:
        value = _renamed(value, schema)
    if not isinstance(value.get("kind"), str) or value["kind"] not in _KINDS:
        raise UserError(f"kind is {str(value.get('kind'))[:60]!r}; known: {', '.join(_KINDS)}")
    return value


def _renamed(value: dict[str, Any], schema: Any) -> dict[str, Any]:
    """The fields of a line without a digest, in today's names."""
    kind = str(value.get("kind", "cell"))
    renamed = {"kind": "timing", "measurement": kind} if kind in _MEASURED else {"kind": kind}
    if schema != _UNSIGNED.get(renamed["kind"]):
        older = _UNSIGNED.get(renamed["kind"], SCHEMA)
        raise UserError(
            f"schema is {str(schema)[:50]} and this modbench reads {older} and {SCHEMA}; use "
            "the version that wrote it"
        )
    return value | renamed


def read_record(line: str) -> AnyRecord:
    """The record of ``line``, of any kind and any schema so far. Raises UserError: see `parse_line`, or
    a field is not as its class declares."""
    values = parse_line(line)
    kind: Any = _KINDS[values.pop("kind")]
    check("", values, shape_of(kind))  # an unknown name is no argument of the class
    record: AnyRecord = kind(**values)
    return record
