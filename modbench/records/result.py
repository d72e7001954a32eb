"""Joins records: each run at each of its budgets, with what was measured on its weights. No torch."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modbench.records.record import (
    End,
    Finding,
    Measured,
    MeasurementRecord,
    Plan,
    Point,
    RunRecord,
    SuiteRecord,
    rank_of,
)
from modbench.records.run import Run, reported_shape
from modbench.records.sections import RoutedLayer, Routing, TaskScores
from modbench.records.store import Records, latest
from modbench.records.traces import Rules, Traces


@dataclass(kw_only=True, eq=False)
class Result:
    """One seed of a row: a run at one of its budgets, and the measurements of its weights there. What is
    not given follows from these records."""

    record: RunRecord
    budget: int
    label: str  #: of the row: the scheme's, with its size after a slash if the suite has several
    row_number: int = 0  #: of the row, in the order of its suite
    #: that names the row: name, version, time and rank of its record; and of the newest suite,
    #: ``compare``: its stated comparisons; ``left``, ``wanted``: runs not finished, and all
    suite: Mapping[str, Any]
    in_suite: bool = False  #: the newest suite wants this run
    isoflop: Plan | None = None  #: plan of the scheme's learning rates
    measurements: Sequence[MeasurementRecord] = ()
    #: settings of the measurements that the suite wants, in the form of `settings`
    wanted: Mapping[str, Any] = field(default_factory=dict)

    run: Run = field(init=False)
    key: str = field(init=False)
    seed: int = field(init=False)
    learning_rate: float = field(init=False)
    width: int = field(init=False)
    scheme: str = field(init=False)  #: the label of its scheme
    depth: int | None = field(init=False)  #: layers, in a suite with curves of several depths
    model: dict[str, Any] = field(init=False)  #: the shape of its model, as its record states it
    end: End | None = field(init=False)  #: what was spent at the budget; None if it was not reached
    status: str = field(init=False)  #: that of the training, or of the held-out loss if that was lost
    error: str | None = field(init=False)
    lost: list[str] = field(init=False)  #: tasks that were not scored, each with its status
    audit_key: str | None = field(init=False)  #: of the audit of its scheme
    audit: Sequence[Finding] = field(init=False)  #: findings on its trained weights
    metrics: dict[str, Any] = field(init=False)  #: all but those that are timed
    curve: list[Point] = field(init=False)  #: without the decays of smaller budgets
    routing: Routing | None = field(init=False)  #: on held-out text; None if it routes nothing
    layers: list[RoutedLayer] = field(init=False)  #: updates and gates; empty: not measured
    traces: Traces | None = field(init=False)  #: routing over the course of training
    rules: Rules | None = field(init=False)
    downstream: dict[str, TaskScores] = field(init=False)  #: scores by task
    #: of its measurements: ``heldout``, and ``downstream`` by name in the suite; of a lost run, those of
    #: the measurements that the suite wants
    settings: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        record, measured = self.record, self.measurements
        self.run, self.key, self.model = record.what, record.key, reported_shape(record.run["model"])
        self.seed, self.learning_rate = self.run.seed, self.run.train.learning_rate
        self.width, self.scheme = self.run.model.width, self.label.partition("/")[0]
        self.depth = self.isoflop.get("depth") if self.isoflop else None
        self.end = next((end for end in record.ends if end.budget == self.budget), None)
        self.status, self.error = record.status, record.error
        failed = [of for of in measured if of.status != "ok"]
        if self.end and record.status == "ok":
            heldout = [(of.status, of.error) for of in failed if of.measurement.measures == "heldout"]
            self.status, self.error = heldout[0] if heldout else ("ok", None)
        tasks = ((of.measurement.settings.get("task"), of.status) for of in failed)
        self.lost = [f"{task} {status}" for task, status in tasks if task]
        found = [of.result for of in measured]
        self.audit_key = next(filter(None, (of.audit_key for of in found)), record.audit_key)
        self.audit = self.end.audit if self.end else ()
        self.routing = next(filter(None, (of.routing for of in found)), None)
        self.layers = next(filter(None, (of.layers for of in found)), [])
        self.traces = next(filter(None, (of.traces for of in found)), None)
        self.rules = next(filter(None, (of.rules for of in found)), None)
        self.curve = [point for point in record.curve if point.decay in (None, self.budget)]
        self.metrics = dict(record.metrics)
        if self.end:
            spent = ("steps", "tokens", "flops", "flops_nominal")
            self.metrics |= {f"train_{name}": getattr(self.end, name) for name in spent}
        self.downstream = {}
        for of in found:
            self.metrics |= of.metrics
            self.downstream |= of.downstream
        wanted = self.wanted if self.status != "ok" else {}
        self.settings = {of: dict(wanted[of]) for of in ("heldout", "downstream") if of in wanted}
        for kind, settings in ((of.measurement.measures, of.measurement.settings) for of in measured):
            if kind == "downstream":
                self.settings.setdefault(kind, {})[settings["task"]] = settings
            elif kind not in ("routing", "rules"):  # those of rules differ between seeds
                self.settings[kind] = settings

    @property
    def place(self) -> tuple[str, int | None]:
        """The scheme and the depth whose curves it belongs to."""
        return self.scheme, self.depth


#: For runs that no suite record names.
_UNNAMED = {
    "name": "unnamed",
    "version": 1,
    "finished": "",
    "rank": (0, "", ""),
}


def results_of(records: Records) -> list[Result]:
    """The results of all runs of a suite, by label, budget and seed. Of several records of a run or a
    measurement the newest that is ok counts; of measurements with other settings, those that the suite
    wanted last."""
    runs, measurements = latest(records.runs), latest(records.measurements)
    wanted: dict[str, Any] = dict(records.suites[-1].suite.wanted) if records.suites else {}
    wanted["downstream"] = {settings["task"]: settings for settings in wanted.get("downstream", ())}
    measured = _measured(measurements, wanted)
    in_suite = {key for of in records.suites[-1:] for row in of.suite.rows for key in row.runs}
    state = _state(records.suites, runs, measured, in_suite)
    rows = _rows(records.suites, state)
    results = [
        Result(
            record=record,
            budget=record.what.schedule.budget,
            in_suite=record.key in in_suite,
            measurements=measured[record.key, record.what.schedule.budget],
            wanted=wanted,
            **row,
        )
        for record in runs
        for row in rows.get(record.key, [{"label": record.what.router.name, "suite": _UNNAMED | state}])
    ]
    return sorted(results, key=lambda result: (result.label, result.budget, result.seed, result.key))


_Measured = defaultdict[tuple[str, int], list[MeasurementRecord]]


def _state(
    suites: Sequence[SuiteRecord],
    runs: Iterable[RunRecord],
    measured: _Measured,
    in_suite: Collection[str],
) -> dict[str, Any]:
    """The comparisons that the newest suite states, and how many of its runs, ``in_suite``, are left:
    without a record, or without that of the loss which the suite wants. One that failed is not left."""
    if not suites:
        return {"compare": (), "left": 0, "wanted": 0}
    newest = suites[-1].suite
    left = {*in_suite} - {record.key for record in runs}
    for record in runs if "heldout" in newest.wanted else ():
        kinds = [of.measurement.measures for of in measured[record.key, record.what.schedule.budget]]
        if record.status == "ok" and "heldout" not in kinds:
            left |= {*in_suite} & {record.key}
    return {"compare": tuple(newest.compare), "left": len(left), "wanted": len(in_suite)}


def _rows(suites: Iterable[SuiteRecord], state: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the names of a run of a `Result`, by key: a dictionary for each of its rows in the last
    suite that names it."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for record in suites:
        suite = record.suite
        named = {"name": suite.name, "version": suite.version}
        named |= {"finished": record.finished, "rank": rank_of(record), **state}
        of_suite: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for number, row in enumerate(suite.rows):
            for key in row.runs:
                of_suite[key].append(
                    {"label": row.label, "row_number": number, "suite": named, "isoflop": row.isoflop}
                )
        rows |= of_suite
    return rows


def _measured(records: Sequence[MeasurementRecord], wanted: Mapping[str, Any]) -> _Measured:
    """The measurements that count, by run and budget: held-out loss first, then tasks in the order of
    the suite."""
    tasks = wanted["downstream"]
    order = {task: rank for rank, task in enumerate(tasks)}
    best: dict[tuple[Any, ...], MeasurementRecord] = {}

    def is_wanted(measured: Measured) -> bool:
        of_kind = tasks if measured.measures == "downstream" else wanted
        name = measured.settings["task"] if measured.measures == "downstream" else measured.measures
        return bool(measured.settings == of_kind.get(name))

    for record in sorted(
        records,
        key=lambda of: (of.status == "ok", is_wanted(of.measurement), of.finished_at, of.key),
    ):
        measured = record.measurement
        task = measured.settings.get("task", "")
        kind = "0" if measured.measures == "heldout" else measured.measures
        rank = order.get(task, len(order))
        best[measured.run, measured.budget, kind, rank, task] = record
    by_run: _Measured = defaultdict(list)
    for (run, budget, *_), record in sorted(best.items(), key=lambda item: item[0]):
        by_run[run, budget].append(record)
    return by_run
