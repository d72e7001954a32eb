"""Records: one line of canonical JSON each, checked when written and when read.

A record is of a kind: a run that was trained, a measurement of its weights, the audit of a scheme, a
process of `modbench time`, or what a suite wanted when it ran. Its key is the hash of its subject; its
digest is the hash of the line itself, so that a damaged or edited line is refused. A subject that is
JSON for its hash is a dictionary; all else has attributes. Loads no torch: the process that runs a job
imports this.
"""

from functools import cached_property
from typing import Annotated, Any, Literal, NotRequired, Self

from pydantic import AfterValidator, Field, TypeAdapter, model_validator
from typing_extensions import TypedDict

from modbench.records.line import (
    AboveZero,
    Count,
    Label,
    Name,
    Number,
    Outcome,
    Part,
    Positive,
    Real,
    Record,
    Status,
    canonical_json,
    key_of,
    matching,
    parsed,
)
from modbench.records.metrics import METRICS
from modbench.records.names import KEY, LABEL_WORDS, ROW_LABEL
from modbench.records.run import Run, RunJson
from modbench.records.sections import RoutedLayer, Routing, Settings, TaskName, TaskScores
from modbench.records.timing import PROTOCOL, Programs, TimingKind, TimingRecord
from modbench.records.traces import Rules, Traces

__all__ = ["PROTOCOL", "Status", "TimingKind", "TimingRecord", "canonical_json", "key_of"]

#: Statuses of what is done, however often it is asked for. What failed is run again, what ran out of
#: memory only on request (`modbench.sweep.wanted.left_of`).
DONE = frozenset({"ok", "diverged"})
RowLabel = Annotated[str, matching(ROW_LABEL, f"{LABEL_WORDS}; or two of them with a '/' between")]
#: Wall time of each step.
Seconds = dict[Name, Annotated[float, Field(ge=0, le=1e30)]]


#: Metrics that a record may hold; True: of whole numbers.
_COUNTED = {
    metric.name: metric.unit in ("steps", "tokens", "parameters", "FLOP")
    for metric in METRICS.values()
    if metric.kind != "timed"
}


def _metrics(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        counted = _COUNTED.get(name)
        if counted is None:
            raise ValueError(f".{repr(name)[1:-1][:60]} is not a known field")
        if counted and (not isinstance(value, int) or value < 0):
            raise ValueError(f".{name} is {value}; input should be a valid integer, 0 or more")
    return values


Metrics = Annotated[dict[str, Number], AfterValidator(_metrics)]


class Text(TypedDict):
    sha256: str
    train_tokens: Count
    heldout_tokens: Count


class Finding(Part):
    """One probe of an audit; ``ranks``: a failure prevents ranking."""

    probe: int
    name: str
    verdict: Literal["passed", "failed", "not asked", "unchecked"]
    figure: str
    ranks: bool


class End(Part):
    """The end of a budget, and the probes that were run on its weights."""

    budget: Positive
    steps: Count
    tokens: Count
    flops: Count
    flops_nominal: Count
    audit: list[Finding]


class Point(Part):
    """A point of the learning curve."""

    step: Count
    flops: Count
    tokens: Count
    train_loss: Real
    heldout_loss: Real
    decay: Positive | None = None  #: of records until November 2026: the budget whose decay it is in


class RunRecord(Outcome):
    """One training of a run. A rerun has the same key. Its audit is a record of its own."""

    about = "run"

    kind: Literal["run"]
    run: RunJson
    data: Text
    metrics: Metrics  #: costs of the scheme at this shape
    ends: list[End]  #: one, if the budget was reached; records until November 2026 may have several
    curve: list[Point]
    audit_key: str | None = None  #: key of the audit of its scheme
    flops_source: Literal["closed form", "counted"] | None = None  #: how its FLOPs were found
    left_behind: Count | None = None  #: of records until November 2026; nothing reads it
    programs: Programs | None = None
    workers: Positive | None = None  #: jobs that shared the machine's memory
    seconds: Seconds | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        budgets = self.what.schedule.budgets  # raises UserError: a field is wrong
        if self.status == "ok" and tuple(end.budget for end in self.ends) != budgets:
            raise ValueError("status is ok but ends lack the budget of the schedule")
        return self

    @cached_property
    def what(self) -> Run:
        """The run."""
        return Run.of(self.run)


class Measured(Part):
    """A measurement of the weights of a run at a budget."""

    run: Annotated[str, matching(KEY, "16 hexadecimal digits")]
    budget: Positive
    measures: Literal["audit", "heldout", "downstream", "routing", "rules"]
    settings: Settings

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.measures == "downstream" and "task" not in self.settings:
            raise ValueError(".settings.task is missing")
        return self


class MeasuredResult(Part):
    metrics: Metrics = Field(default_factory=dict)
    routing: Routing | None = None  #: None if the model routes nothing
    layers: list[RoutedLayer] | None = None
    downstream: dict[TaskName, TaskScores] = Field(default_factory=dict)  #: by task
    traces: Traces | None = None
    rules: Rules | None = None
    audit_key: str | None = None  #: the audit of its scheme, if the run was trained without one


class MeasurementRecord(Outcome):
    """A measurement of the weights of a run at its budget."""

    about = "measurement"

    kind: Literal["measurement"]
    measurement: Measured
    result: MeasuredResult
    workers: Positive | None = None  #: jobs that shared the machine's memory
    seconds: Seconds | None = None


class Plan(TypedDict):
    """Learning rates of an isoFLOP suite; see `modbench.sweep.isoflop.stated`."""

    learning_rates: list[AboveZero]
    extensions: Count
    exponent: Number
    margin: AboveZero
    middle_width: Positive
    middle_budget: Positive
    seed: int
    seed_on_curve: NotRequired[bool]  # absent: true
    sizes: NotRequired[Positive]
    refine: NotRequired[bool]  # absent: false
    law_margin: NotRequired[AboveZero]  # absent: the margin
    depth: NotRequired[Positive]  # layers; absent: the suite has no curves of several depths


class Compared(TypedDict):
    """A comparison that a suite states (`modbench.sweep.tables.Comparison`), at one budget."""

    a: RowLabel
    b: RowLabel
    role: Literal["primary", "secondary"]
    budget: Positive
    margin: NotRequired[AboveZero]
    depth: NotRequired[Positive]


class SuiteRow(Part):
    """A row of a suite: keys of its runs, and of its shapes as `modbench time` times them."""

    label: RowLabel
    runs: list[str]
    timed: list[str]
    isoflop: Plan | None = None


class TaskSettings(Settings):
    task: str  # type: ignore[misc]  # it is optional in settings of other measurements


class Wanted(TypedDict):
    """Settings of the measurements that a suite wants."""

    heldout: NotRequired[dict[str, Any]]
    routing: NotRequired[dict[str, Any]]
    rules: NotRequired[dict[str, Any]]
    downstream: NotRequired[list[TaskSettings]]


class SuiteWishes(Part):
    name: Name
    version: int
    rank_by: str | None = None  # of earlier versions; rows are ordered by validation loss
    rows: list[SuiteRow]
    wanted: Wanted
    compare: list[Compared] = Field(default_factory=list)  # empty: all rows


class SuiteRecord(Record):
    """Wishes of a suite when it ran: labels and order. The newest one counts;
    what only earlier ones name is shown under the label that it had. Which is the newest follows from
    ``number`` and not from a clock that may be wrong: one more than the largest in the folder when it
    was written. Records from before this rule have none, and come first."""

    about = "suite"

    kind: Literal["suite"]
    suite: SuiteWishes
    number: Positive | None = None


def rank_of(record: Any) -> tuple[int, str, str]:
    """Of several records of suites the newest has the largest: by number, then key (the digest of what
    it states); of those without a number by their end."""
    return record.number or 0, "" if record.number else record.finished, record.key


class AuditedRouter(TypedDict):
    name: Label
    options: dict[str, Any]
    code_sha256: str | None


class Scheme(TypedDict):
    """Everything that the findings of an audit depend on."""

    router: AuditedRouter
    model: dict[str, Any]
    shapes: list[list[int]]  #: (sequences, tokens) of each
    trained: list[int]  #: shape of a training step
    torch: str
    modbench: str
    device: str


class AuditRecord(Record):
    """The audit of one scheme. The runs of all seeds and budgets refer to it by key."""

    about = "scheme"

    kind: Literal["audit"]
    scheme: Scheme
    audit: list[Finding]


AnyRecord = RunRecord | MeasurementRecord | SuiteRecord | AuditRecord | TimingRecord
_ANY: TypeAdapter[AnyRecord] = TypeAdapter(Annotated[AnyRecord, Field(discriminator="kind")])


def read_record(line: bytes | str) -> AnyRecord:
    """The record of ``line``, of any kind. Raises UserError: see `modbench.records.line.parsed`."""
    raw = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
    return parsed(raw, _ANY.validate_json)
