"""Joins records: each run at each of its budgets, with what was measured on its weights. No torch."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from modbench.records.line import Code, Environment
from modbench.records.record import (
    End,
    Finding,
    MeasurementRecord,
    Plan,
    Point,
    RunRecord,
    SuiteRecord,
    Text,
    rank_of,
)
from modbench.records.run import Run, reported_shape
from modbench.records.sections import RoutedLayer, Routing, TaskScores
from modbench.records.store import Records, latest

#: A scheme, and the depth of its curves; None: its suite has no curves of several depths.
Place = tuple[str, int | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """One seed of a row: a run at one of its budgets, and the measurements of its weights there."""

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

    @property
    def run(self) -> Run:
        return self.record.what

    @property
    def key(self) -> str:
        return self.record.key

    @property
    def seed(self) -> int:
        return self.run.seed

    @property
    def scheme(self) -> str:
        """The label of its scheme."""
        return self.label.partition("/")[0]

    @property
    def learning_rate(self) -> float:
        return self.run.train.learning_rate

    @property
    def width(self) -> int:
        return self.run.model.width

    @property
    def depth(self) -> int | None:
        """Layers, in a suite with curves of several depths."""
        return self.isoflop.get("depth") if self.isoflop else None

    @property
    def place(self) -> Place:
        """The scheme and the depth whose curves it belongs to."""
        return self.scheme, self.depth

    @property
    def model(self) -> dict[str, Any]:
        """The shape of its model, as its record states it."""
        return reported_shape(self.record.run["model"])

    @cached_property
    def end(self) -> End | None:
        """Steps, tokens and FLOPs spent at the budget; None if it was not reached."""
        return next((end for end in self.record.ends if end.budget == self.budget), None)

    @cached_property
    def _outcome(self) -> tuple[str, str | None]:
        if self.end is None or self.record.status != "ok":
            return self.record.status, self.record.error
        lost = [
            (record.status, record.error)
            for record in self.measurements
            if record.status != "ok" and record.measurement.measures == "heldout"
        ]
        return lost[0] if lost else ("ok", None)

    @property
    def status(self) -> str:
        """That of the training, or of the held-out loss if that was lost."""
        return self._outcome[0]

    @property
    def error(self) -> str | None:
        return self._outcome[1]

    @property
    def lost(self) -> list[str]:
        """Tasks that were not scored, each with its status."""
        return [
            f"{task} {record.status}"
            for record in self.measurements
            if record.status != "ok" and (task := record.measurement.settings.get("task"))
        ]

    @property
    def audit_key(self) -> str | None:
        """Key of the audit of its scheme."""
        later = (record.result.audit_key for record in self.measurements)
        return next(filter(None, later), self.record.audit_key)

    @property
    def audit(self) -> Sequence[Finding]:
        """Findings on its trained weights."""
        return self.end.audit if self.end else ()

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """All metrics but those that are timed."""
        metrics = dict(self.record.metrics)
        if self.end:
            spent = ("steps", "tokens", "flops", "flops_nominal")
            metrics |= {f"train_{name}": getattr(self.end, name) for name in spent}
        for record in self.measurements:
            metrics |= record.result.metrics
        return metrics

    @property
    def curve(self) -> list[Point]:
        """Its learning curve, without the decays of smaller budgets."""
        return [point for point in self.record.curve if point.decay in (None, self.budget)]

    @property
    def routing(self) -> Routing | None:
        """Histograms of its routing on held-out text; None if it routes nothing."""
        return next(filter(None, (record.result.routing for record in self.measurements)), None)

    @property
    def layers(self) -> list[RoutedLayer]:
        """Updates and gates of its routed layers; empty if they were not measured."""
        return next(filter(None, (record.result.layers for record in self.measurements)), [])

    @cached_property
    def downstream(self) -> dict[str, TaskScores]:
        """Scores by task."""
        scores: dict[str, TaskScores] = {}
        for record in self.measurements:
            scores |= record.result.downstream
        return scores

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings of its measurements: ``heldout``, and ``downstream`` by name of the suite; of a lost
        run, those of the measurements that the suite wants."""
        settings: dict[str, Any] = {}
        if self.status != "ok":
            settings = {kind: dict(of) for kind, of in self.wanted.items()}
        for record in self.measurements:
            measured = record.measurement
            if measured.measures == "downstream":
                task = measured.settings["task"]
                settings.setdefault("downstream", {})[task] = measured.settings
            else:
                settings[measured.measures] = measured.settings
        return settings

    @property
    def environment(self) -> Environment:
        """Of the process that trained it."""
        return self.record.environment

    @property
    def data(self) -> Text:
        """The text."""
        return self.record.data

    @property
    def code(self) -> Code:
        return self.record.code

    @property
    def flops_source(self) -> str | None:
        return self.record.flops_source


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

    def is_wanted(record: MeasurementRecord) -> bool:
        measured = record.measurement
        of_kind = tasks if measured.measures == "downstream" else wanted
        name = measured.settings["task"] if measured.measures == "downstream" else measured.measures
        return bool(measured.settings == of_kind.get(name))

    for record in sorted(records, key=lambda r: (r.status == "ok", is_wanted(r), r.finished_at, r.key)):
        measured = record.measurement
        task = measured.settings.get("task", "")
        kind = "0" if measured.measures == "heldout" else measured.measures
        rank = order.get(task, len(order))
        best[measured.run, measured.budget, kind, rank, task] = record
    by_run: _Measured = defaultdict(list)
    for (run, budget, *_), record in sorted(best.items(), key=lambda item: item[0]):
        by_run[run, budget].append(record)
    return by_run
