"""Joins records: each run at each of its budgets, with what was measured on its weights. No torch."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import compress
from typing import Any

from modbench.records.record import MeasurementRecord, RunRecord, SuiteRecord
from modbench.records.run import Run, reported_shape
from modbench.records.store import Records, latest

#: A scheme, and the depth of its curves; None: its suite has no curves of several depths.
Place = tuple[str, int | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """One seed of a row: a run at one of its budgets, and the measurements of its weights there."""

    record: RunRecord
    budget: int
    label: str  #: of the row: the scheme's, in suites of several shapes with its shape's
    row_number: int = 0  #: of the row, in the order of its suite
    #: that names the row: name, version, rank_by, and time of its record; and of the newest suite,
    #: ``compare``: its stated comparisons; ``left``, ``wanted``: runs not finished, and all
    suite: Mapping[str, Any]
    isoflop: Mapping[str, Any] | None = None  #: plan of the scheme's learning rates
    measurements: tuple[MeasurementRecord, ...] = ()
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
        return (self.isoflop or {}).get("depth")

    @property
    def place(self) -> Place:
        """The scheme and the depth whose curves it belongs to."""
        return self.scheme, self.depth

    @property
    def model(self) -> dict[str, Any]:
        """The shape of its model, as its record states it."""
        return reported_shape(self.record.run["model"])

    @cached_property
    def end(self) -> Mapping[str, Any] | None:
        """Steps, tokens and FLOPs spent at the budget; None if it was not reached."""
        return next((end for end in self.record.ends if end["budget"] == self.budget), None)

    @cached_property
    def _outcome(self) -> tuple[str, str | None]:
        trained = self.end is not None and (self.record.status == "ok" or self.run.schedule.shares_trunk)
        if not trained:
            return self.record.status, self.record.error
        lost = [record for record in self.measurements if record.status != "ok"]
        heldout = [record for record in lost if record.measurement["measures"] == "heldout"]
        return (heldout[0].status, heldout[0].error) if heldout else ("ok", None)

    @property
    def status(self) -> str:
        """That of the training, or of the held-out loss if that was lost."""
        return self._outcome[0]

    @property
    def lost(self) -> list[str]:
        """Tasks that were not scored, each with its status."""
        return [
            f"{task} {record.status}"
            for record in self.measurements
            if record.status != "ok" and (task := record.measurement["settings"].get("task"))
        ]

    @property
    def error(self) -> str | None:
        return self._outcome[1]

    @cached_property
    def audit_key(self) -> str | None:
        """Key of the audit of its scheme."""
        later = (
            record.result["audit_key"] for record in self.measurements if "audit_key" in record.result
        )
        return next(later, self.record.audit_key)

    @property
    def audit(self) -> Sequence[Mapping[str, Any]]:
        """Findings on its trained weights."""
        return self.end["audit"] if self.end else ()

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """All metrics but those that are timed."""
        spent = {}
        if self.end:
            spent = {
                "train_steps": self.end["steps"],
                "train_tokens": self.end["tokens"],
                "train_flops": self.end["flops"],
                "train_flops_nominal": self.end["flops_nominal"],
            }
        measured = (record.result.get("metrics", {}) for record in self.measurements)
        return self.record.metrics | spent | {name: of[name] for of in measured for name in of}

    @cached_property
    def curve(self) -> list[dict[str, Any]]:
        """Its learning curve: the trunk up to the branch of its decay, and that decay."""
        schedule = self.run.schedule
        if not schedule.shares_trunk:
            return self.record.curve
        branch = schedule.trunk(self.budget)
        mask = [
            point["decay"] == self.budget if "decay" in point else point["flops"] <= branch
            for point in self.record.curve
        ]
        return list(compress(self.record.curve, mask))

    @cached_property
    def routing(self) -> dict[str, Any]:
        """Histograms of its routing on held-out text; {} if it routes nothing."""
        routings = (
            record.result["routing"] for record in self.measurements if "routing" in record.result
        )
        return next(routings, {})

    @cached_property
    def layers(self) -> list[dict[str, Any]] | None:
        """Updates and gates of its routed layers; None if they were not measured."""
        return next(
            (record.result["layers"] for record in self.measurements if "layers" in record.result), None
        )

    @cached_property
    def downstream(self) -> dict[str, Any]:
        """Scores by task; see `modbench.records.sections`."""
        scores = (record.result.get("downstream", {}) for record in self.measurements)
        return {task: of[task] for of in scores for task in of}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings of its measurements: ``heldout``, and ``downstream`` by name of the suite; of a lost
        run, those of the measurements that the suite wants."""
        settings = {kind: dict(of) for kind, of in self.wanted.items()} if self.status != "ok" else {}
        for record in self.measurements:
            measured = record.measurement
            if measured["measures"] == "downstream":
                task = measured["settings"]["task"]
                settings.setdefault("downstream", {})[task] = measured["settings"]
            else:
                settings[measured["measures"]] = measured["settings"]
        return settings

    @property
    def environment(self) -> dict[str, Any]:
        """Of the process that trained it."""
        return self.record.environment

    @property
    def data(self) -> dict[str, Any]:
        """The text."""
        return self.record.data

    @property
    def code(self) -> dict[str, Any]:
        return self.record.code

    @property
    def flops_source(self) -> str | None:
        return self.record.flops_source

    @property
    def finished_at(self) -> datetime:
        return self.record.finished_at


def results_of(records: Records) -> list[Result]:
    """The results of all runs of a suite, by label, budget and seed. Of several records of a run or a
    measurement the newest that is ok counts; of measurements with other settings, those that the suite
    wanted last."""
    measurements = latest(records.measurements)
    state = _state(records, measurements)
    rows = _rows(records.suites, state)
    wanted = records.suites[-1].suite["wanted"] if records.suites else {}
    measured = _measured(measurements, wanted)
    tasks = {settings["task"]: settings for settings in wanted.get("downstream", ())}
    settings = {**wanted, "downstream": tasks}
    results = []
    for record in latest(records.runs):
        unnamed = [(record.what.router.name, 0, {**_UNNAMED, **state}, None)]
        for label, number, suite, plan in rows.get(record.key, unnamed):
            for budget in record.what.schedule.budgets:
                results.append(
                    Result(
                        record=record,
                        budget=budget,
                        label=label,
                        row_number=number,
                        suite=suite,
                        isoflop=plan,
                        measurements=tuple(measured.get((record.key, budget), ())),
                        wanted=settings,
                    )
                )
    return sorted(results, key=lambda result: (result.label, result.budget, result.seed, result.key))


#: For runs that no suite record names.
_UNNAMED = {"name": "unnamed", "version": 1, "rank_by": "heldout_loss", "finished": ""}
_Row = tuple[str, int, Mapping[str, Any], Mapping[str, Any] | None]


def _state(records: Records, measurements: Iterable[MeasurementRecord]) -> dict[str, Any]:
    """The comparisons that the newest suite states, and how many of its runs are left: without a
    record, or without that of the loss which the suite wants. One that failed is not left."""
    if not records.suites:
        return {"compare": (), "left": 0, "wanted": 0}
    newest = records.suites[-1].suite
    wanted = {key for row in newest["rows"] for key in row["runs"]}
    ended = {record.key: record for record in latest(records.runs)}
    lacking = {
        (record.key, budget)
        for record in ended.values()
        if record.status == "ok" and "heldout" in newest["wanted"]
        for budget in record.run["schedule"]["budgets"]
    }
    lacking -= {
        (of.measurement["run"], of.measurement["budget"])
        for of in measurements
        if of.measurement["measures"] == "heldout"
    }
    left = (wanted - ended.keys()) | (wanted & {key for key, _ in lacking})
    compare = tuple(newest.get("compare", ()))
    return {"compare": compare, "left": len(left), "wanted": len(wanted)}


def _rows(suites: Iterable[SuiteRecord], state: Mapping[str, Any]) -> dict[str, list[_Row]]:
    """Label, number, suite and plan of each row of a run, by key; the last suite that names a run
    counts. Two of its rows may share a run."""
    rows: dict[str, list[_Row]] = {}
    for record in suites:
        named = {name: record.suite[name] for name in ("name", "version", "rank_by")}
        named |= {"finished": record.finished, **state}
        suite_rows: dict[str, list[_Row]] = defaultdict(list)
        for number, row in enumerate(record.suite["rows"]):
            for key in row["runs"]:
                suite_rows[key].append((row["label"], number, named, row.get("isoflop")))
        rows |= suite_rows
    return rows


def _measured(
    records: Sequence[MeasurementRecord], wanted: Mapping[str, Any]
) -> dict[tuple[str, int], list[MeasurementRecord]]:
    """The measurements that count, by run and budget: held-out loss first, then tasks in the order of
    the suite."""
    tasks = {settings["task"]: settings for settings in wanted.get("downstream", ())}
    best: dict[tuple[str, int, str, str], MeasurementRecord] = {}

    def is_wanted(record: MeasurementRecord) -> bool:
        measured = record.measurement
        if measured["measures"] == "downstream":
            return bool(measured["settings"] == tasks.get(measured["settings"]["task"]))
        return bool(measured["settings"] == wanted.get(measured["measures"]))

    for record in sorted(
        records,
        key=lambda r: (r.status == "ok", is_wanted(r), r.finished_at, r.key),
    ):
        measured = record.measurement
        task = measured["settings"].get("task", "")
        kind = "0" if measured["measures"] == "heldout" else measured["measures"]
        best[measured["run"], measured["budget"], kind, task] = record
    by_run: dict[tuple[str, int], list[MeasurementRecord]] = defaultdict(list)
    order = {task: rank for rank, task in enumerate(tasks)}
    keys = sorted(best, key=lambda key: (key[:3], order.get(key[3], len(order)), key[3]))
    for run, budget, kind, task in keys:
        by_run[run, budget].append(best[run, budget, kind, task])
    return by_run
