"""Records: one line of canonical JSON each, checked when written and when read.

A record is of a kind: a run that was trained, a measurement of its weights, the audit of a scheme, a
process of `modbench time`, or what a suite wanted when it ran. Its key is the hash of its subject; its
digest is the hash of the line itself, so that a damaged or edited line is refused. Loads no torch: the
process that runs a job imports this.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, TypeAdapter

from modbench.errors import UserError
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
    check,
    check_outcome,
    closed,
    key_of,
    like,
    list_of,
    matching,
    optional,
    printable_values,
    sha256,
)
from modbench.records.metrics import METRICS
from modbench.records.names import KEY, LABEL, LABEL_WORDS, NAME, ROW_LABEL
from modbench.records.run import Run, Timed
from modbench.records.sections import DOWNSTREAM, ROUTED_LAYER, SETTINGS, TASKS, check_routing

__all__ = [
    "AnyRecord",
    "AuditRecord",
    "MeasurementRecord",
    "RunRecord",
    "Status",
    "SuiteRecord",
    "TimingKind",
    "TimingRecord",
    "canonical_json",
    "key_of",
    "parse_line",
    "read_record",
]

Status = Literal["ok", "failed", "oom", "diverged"]
#: Statuses of what is done, however often it is asked for. One that failed is run again; one that ran
#: out of memory, where more memory may be free (`modbench.sweep.wanted.is_done`).
DONE = frozenset({"ok", "diverged"})
TimingStatus = Literal["ok", "failed", "oom"]
#: Version of what `modbench time` measures, raised when times change in meaning: those of two are never
#: compared. 2: warm-up by time, no garbage collection, ceilings in a row, load of usable cores.
PROTOCOL = 2
#: What a process of `modbench time` measures.
TimingKind = Literal["training", "inference", "ceiling", "training_memory", "inference_memory"]

_NAME: Any = matching(NAME, "lower-case letters, digits, '_', '-' and '.'")
_LABEL: Any = matching(LABEL, LABEL_WORDS)
_ROW_LABEL: Any = matching(ROW_LABEL, f"{LABEL_WORDS}; or two of them with a '/' between")
_ROUTER = closed(name=_LABEL, options=dict, plugin_sha256=str | None)
_VERDICT = Literal["passed", "failed", "not asked", "unchecked"]
#: One probe of an audit; ``ranks``: a failure prevents ranking.
_FINDING = closed(probe=int, name=str, verdict=_VERDICT, figure=str, ranks=bool)
#: Units of metrics that are whole numbers.
_COUNTED = ("steps", "tokens", "parameters", "FLOP")
_METRICS = closed(
    **{
        name: optional[COUNT if of.unit in _COUNTED else REAL]
        for name, of in METRICS.items()
        if of.kind != "timed"
    }
)
_RUN = closed(
    router=_ROUTER,
    model=dict,
    data=dict,
    train=at_least(sequence=POSITIVE, batch=POSITIVE),
    schedule=at_least(kind=Literal["cosine", "trapezoid"], budgets=list_of[POSITIVE]),
    seed=COUNT,
)
_DATA = closed(sha256=str, train_tokens=COUNT, heldout_tokens=COUNT)
_POINT = closed(
    step=COUNT,
    flops=COUNT,
    tokens=COUNT,
    train_loss=REAL,
    heldout_loss=REAL,
    decay=optional[POSITIVE],  #: the budget whose decay it is in; absent: of the trunk, or of a cosine
)
#: The end of a budget, and the probes that were run on its weights.
_END = closed(
    budget=POSITIVE,
    steps=COUNT,
    tokens=COUNT,
    flops=COUNT,
    flops_nominal=COUNT,
    audit=list_of[_FINDING],
)
_STEPS: Any = dict[_NAME, Annotated[float, Field(ge=0, le=1e30)]]

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
    refine=optional[bool],  # absent: false
    law_margin=optional[SECONDS],  # absent: the margin
    depth=optional[POSITIVE],  # layers; absent: the suite has no curves of several depths
)


PROGRAMS = closed(graphs=COUNT, breaks=COUNT)


@dataclass(frozen=True, kw_only=True)
class RunRecord(Line):
    """One training of a run. A rerun has the same key. Its audit is a record of its own."""

    kind: ClassVar[str] = "run"
    subject: ClassVar[str] = "run"

    run: Annotated[dict[str, Any], like(_RUN)]  #: JSON of a `modbench.records.run.Run`
    data: Annotated[dict[str, Any], like(_DATA)]  #: the text
    metrics: Annotated[dict[str, Any], like(_METRICS)]  #: costs of the scheme at this shape
    ends: Annotated[list[dict[str, Any]], like(list_of[_END])]  #: one per budget that was reached
    curve: Annotated[list[dict[str, Any]], like(list_of[_POINT])]
    status: Status
    error: str | None  #: why the run is not ok
    audit_key: str | None = None  #: key of the audit of its scheme
    #: how its FLOPs were found
    flops_source: Annotated[str, like(Literal["closed form", "counted"])] | None = None
    #: FLOPs of decays that branched off for smaller budgets; absent: none
    left_behind: Annotated[int, like(COUNT)] | None = None
    #: of compiled steps: programs, and places where torch.compile left one for Python
    programs: Annotated[dict[str, Any], like(PROGRAMS)] | None = None
    workers: Annotated[int, like(POSITIVE)] | None = None  #: jobs that shared the machine's memory
    seconds: Annotated[dict[str, float], like(_STEPS)] | None = None  #: wall time of each step

    def _check(self) -> None:
        check_outcome(self.status, self.error)
        if (
            self.status == "ok"
            and [end["budget"] for end in self.ends] != self.run["schedule"]["budgets"]
        ):
            raise UserError("status is ok but ends lack a budget of the schedule")
        _ = self.what  # its fields are right

    @cached_property
    def what(self) -> Run:
        """The run."""
        return Run.of(self.run)


#: One measurement of trained weights. Its settings are those that can alter the result.
_MEASURED_ON = closed(
    run=matching(KEY, "16 hexadecimal digits"),
    budget=POSITIVE,
    measures=Literal["audit", "heldout", "downstream"],
    settings=SETTINGS,
)
_RESULT = closed(
    metrics=optional[_METRICS],
    routing=optional[dict],  #: see `modbench.records.sections`; absent if the model routes nothing
    layers=optional[list_of[ROUTED_LAYER]],
    downstream=optional[DOWNSTREAM],  #: scores by task
    audit_key=optional[str],  #: the audit of its scheme, if the run was trained without one
)


@dataclass(frozen=True, kw_only=True)
class MeasurementRecord(Line):
    """A measurement of the weights of a run at one of its budgets."""

    kind: ClassVar[str] = "measurement"
    subject: ClassVar[str] = "measurement"

    measurement: Annotated[dict[str, Any], like(_MEASURED_ON)]
    result: Annotated[dict[str, Any], like(_RESULT)]
    status: Status
    error: str | None
    workers: Annotated[int, like(POSITIVE)] | None = None
    seconds: Annotated[dict[str, float], like(_STEPS)] | None = None

    def _check(self) -> None:
        if self.measurement["measures"] == "downstream" and "task" not in self.measurement["settings"]:
            raise UserError("measurement.settings.task is missing")
        check_routing(self.result.get("routing", {}))
        check_outcome(self.status, self.error)


#: A row of a suite: keys of its runs, and of its shapes as `modbench time` times them.
_ROW = closed(
    label=_ROW_LABEL,
    runs=list_of[str],
    timed=list_of[str],
    isoflop=optional[_ISOFLOP],
)


#: A comparison that a suite states (`modbench.sweep.tables.Comparison`), at one budget.
_COMPARED = closed(
    a=_ROW_LABEL,
    b=_ROW_LABEL,
    role=Literal["primary", "secondary"],
    budget=POSITIVE,
    margin=optional[SECONDS],
    depth=optional[POSITIVE],
)


def rank_of(record: Any) -> tuple[int, str, str]:
    """Of several records of suites the newest has the largest: by number, then key (the digest of what
    it states); of those without a number by their end."""
    return record.number or 0, "" if record.number else record.finished, record.key


@dataclass(frozen=True, kw_only=True)
class SuiteRecord(Line):
    """Wishes of a suite when it ran: labels, order and how its rows are ranked. The newest one counts;
    what only earlier ones name is shown under the label that it had. Which is the newest follows from
    ``number`` and not from a clock that may be wrong: one more than the largest in the folder when it
    was written. Records from before this rule have none, and come first."""

    kind: ClassVar[str] = "suite"
    subject: ClassVar[str] = "suite"

    #: ``wanted``: settings of measurements by kind, as `MeasurementRecord` states them
    suite: Annotated[
        dict[str, Any],
        like(
            closed(
                name=_NAME,
                version=int,
                rank_by=_NAME,
                rows=list_of[_ROW],
                wanted=closed(heldout=optional[dict], downstream=optional[TASKS]),
                compare=optional[list_of[_COMPARED]],  # absent: all rows
            )
        ),
    ]
    number: Annotated[int, like(POSITIVE)] | None = None


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
    """The audit of one scheme. The runs of all seeds and budgets refer to it by key."""

    kind: ClassVar[str] = "audit"
    subject: ClassVar[str] = "scheme"

    scheme: Annotated[dict[str, Any], like(_SCHEME)]  #: what the findings depend on
    audit: Annotated[list[dict[str, Any]], like(list_of[_FINDING])]


_TIMED = closed(
    router=_ROUTER | None,
    model=dict,
    sequence=POSITIVE,
    batch=POSITIVE,
    precision=str,
    micro_batch=optional[POSITIVE],
    recompute=optional[bool],
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
    host_share=optional[REAL],  #: of its time; absent: of a CPU, or not measured
)
_RAN_OUT = closed(**_ASKED, asked_bytes=COUNT | None, error=str)
_TIMES = closed(
    cases=list_of[_CASE],
    balance=str,
    compiled=bool,
    programs=optional[PROGRAMS],
    machine=_MACHINE,
    ran_out=optional[list_of[_RAN_OUT]],
)
_GEMM = at_least(dtype=str, component=str, rows=int, inner=int, columns=int, flops_per_second=SECONDS)
_CEILING = closed(gemm=list_of[_GEMM], copy_bytes_per_second=SECONDS, machine=_MACHINE, gpu=_GPU)
_BYTES: Any = dict[str, Annotated[int, Field(ge=-(10**30), le=10**30)]]
#: Without a prediction where experts are computed by matmuls that tensors without values lack.
_MEMORY = closed(measured=_BYTES, predicted=optional[_BYTES])
_MEASURED = {
    "training": TypeAdapter(_TIMES),
    "inference": TypeAdapter(_TIMES),
    "ceiling": TypeAdapter(_CEILING),
    "training_memory": TypeAdapter(_MEMORY),
    "inference_memory": TypeAdapter(_MEMORY),
}


@dataclass(frozen=True, kw_only=True)
class TimingRecord(Line):
    """One process that measures time or memory of an untrained scheme.

    A session is what calls on one machine with one version of the code have added to: each scheme in
    several processes, its memory in one process each, and the machine's ceilings. Only records of one
    session are compared.
    """

    kind: ClassVar[str] = "timing"
    subject: ClassVar[str] = "timed"

    session: Annotated[str, like(_LABEL)]
    measures: TimingKind
    timed: Annotated[dict[str, Any], like(_TIMED)]  #: JSON of a `modbench.records.run.Timed`
    time: dict[str, Any]  #: the settings: fields of [time]
    repetition: int  #: from 1
    environment: Annotated[dict[str, Any], like(_MEASURING)]
    #: what the process measured; if not ok: {}, or the cases that could be timed
    measured: dict[str, Any]
    asked_bytes: Annotated[int, like(COUNT)] | None  #: size of the allocation that failed, if known
    status: TimingStatus
    error: str | None
    #: version of the measurement (`PROTOCOL`); absent: 1
    protocol: Annotated[int, like(POSITIVE)] | None = None

    def _check(self) -> None:
        if (self.timed["router"] is None) != (self.measures == "ceiling"):
            raise UserError(f"measures is {self.measures}; a ceiling has no router, every other has")
        if self.status == "ok" or (self.measured and self.measures in ("training", "inference")):
            check("measured", self.measured, _MEASURED[self.measures])
            if self.measures.endswith("memory"):
                parts = set(self.measured["measured"])
                if "peak" not in parts or parts != set(self.measured.get("predicted", parts)):
                    raise UserError("measured and predicted differ in their parts, or lack the peak")
        check_outcome(self.status, self.error)

    @cached_property
    def what(self) -> Timed:
        """The scheme or machine that was timed."""
        return Timed.of(self.timed)

    @property
    def job(self) -> tuple[str, str, int]:
        """Its place in the session: what it measures, key, repetition."""
        return self.measures, self.key, self.repetition


AnyRecord = RunRecord | MeasurementRecord | SuiteRecord | AuditRecord | TimingRecord
_KINDS: dict[str, type[AnyRecord]] = {kind.kind: kind for kind in get_args(AnyRecord)}


def parse_line(line: str) -> dict[str, Any]:
    """The fields of ``line``, ``kind`` included and ``digest`` checked, in printable characters. The
    fields themselves are not checked. Raises UserError: it is not a JSON object, of an unknown schema or
    kind, or it was changed after it was written."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError("it is not a JSON object")
    schema, digest = value.pop("schema", None), value.pop("digest", None)
    if schema != SCHEMA:
        raise UserError(
            f"schema is {str(schema)[:50]}, this modbench reads {SCHEMA}; use the one that wrote it"
        )
    if digest != sha256(line.replace(f'"digest":"{digest}"', '"digest":""', 1)):
        raise UserError("its digest is of another line; it was changed after it was written")
    if not isinstance(value.get("kind"), str) or value["kind"] not in _KINDS:
        raise UserError(f"kind is {str(value.get('kind'))[:60]!r}; known: {', '.join(_KINDS)}")
    return dict(printable_values(line, value))


def read_record(line: str) -> AnyRecord:
    """The record of ``line``, of any kind. Raises UserError: see `parse_line`, or
    a field is not as its class declares."""
    values = parse_line(line)
    return _KINDS[values.pop("kind")].read(values, line)
