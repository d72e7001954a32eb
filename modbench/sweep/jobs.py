"""The jobs of what is left, the records that they make, and the record of what a suite wants."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from modbench.measure.config import MeasureConfig
from modbench.measure.environment import code_version, environment
from modbench.records.finished import Finished
from modbench.records.line import key_of
from modbench.records.record import AnyRecord, MeasurementRecord, RunRecord, SuiteRecord, rank_of
from modbench.records.run import RouterCode, Run
from modbench.records.store import append_record
from modbench.sweep.job import Identity, Job, identities_of
from modbench.sweep.rows import Rows
from modbench.sweep.suite import Suite
from modbench.sweep.tables import KeepConfig, stated_comparisons
from modbench.sweep.track import TrackConfig
from modbench.sweep.wanted import Left, Wanted, plan_of


def folder_of(suite: Path, key: str) -> Path:
    """The folder of a run: its checkpoint, its weights and its log."""
    return suite.resolve() / "runs" / key


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Settings that all jobs of a command have in common."""

    suite: str  #: its name
    folder: Path  #: ``results/<suite>``
    audit: bool  #: of the scheme, once
    threads: int
    workers: int  #: jobs that run at the same time
    wait: bool  #: pause while another process measures
    curve_tokens: int = MeasureConfig.curve_tokens
    keep: str = KeepConfig.weights
    points: int | None = None  #: weights to keep along the learning curve
    track: TrackConfig = field(default_factory=TrackConfig)

    @classmethod
    def of(cls, suite: Suite, **others: Any) -> "Asked":
        """The wishes of ``suite``; ``others``: what it does not state."""
        return cls(
            suite=suite.header.name,
            audit="audit" in suite.measure.steps,
            curve_tokens=suite.measure.curve_tokens,
            keep=suite.keep.weights,
            points=suite.measure.downstream_checkpoints,
            track=suite.track,
            **others,
        )


def run_jobs(
    left: Sequence[Left],
    names: Mapping[str, str],
    asked: Asked,
    plugins_of: Callable[[RouterCode], Sequence[str]],
    data: dict[str, Any],
) -> list[Job]:
    """A job for each run of ``left``. ``names``: displayed, by key; ``plugins_of``: the files that
    register a router; ``data``: for records of jobs that crash."""
    jobs = []
    for item in left:
        run = item.wanted.run
        job_folder = folder_of(asked.folder, run.key)
        spec = {
            "job": "run",
            "suite": asked.suite,
            "label": item.wanted.label,
            "run": run.as_json(),
            "data": data,
            "evaluations": run.train.evaluations,
            "checkpoint_seconds": run.train.checkpoint_seconds,
            "curve_tokens": asked.curve_tokens,
            "train": item.train,
            "audit": asked.audit,
            "measurements": list(item.measurements),
            "keep": asked.keep,
            "points": asked.points,
            "track": asdict(asked.track),
            "plugins": list(plugins_of(run.router)),
            "results": str(asked.folder.resolve()),
            "folder": str(job_folder),
            "hf_folder": getattr(run.model, "folder", None),
            "threads": asked.threads,
            "workers": asked.workers,
            "wait": asked.wait,
        }
        jobs.append(
            Job(
                identities=identities_of(run, item.train, list(item.measurements)),
                title=names[run.key],
                spec=spec,
                log=job_folder / "log.txt",
            )
        )
    return jobs


def store_suite(
    rows: Rows,
    wanted: Sequence[Wanted],
    planned: Sequence[Wanted],
    measures: Sequence[tuple[str, dict[str, Any]]],
    folder: Path,
    records: Sequence[Finished],
) -> None:
    """Record what the suite wants, unless the newest of ``records`` of a suite states the same."""
    suite = suite_of(rows, wanted, planned, measures)
    stored = [record for record in records if record.kind == "suite"]
    newest = max(stored, key=rank_of, default=None)
    if newest is None or newest.key != key_of(suite):
        import torch

        now = datetime.now(UTC)
        made = made_by(environment(torch.float32), now)
        made |= {name: now.isoformat(timespec="microseconds") for name in ("started", "finished")}
        number = 1 + max((record.number or 0 for record in stored), default=0)
        append_record(folder, SuiteRecord.made(suite=suite, key=key_of(suite), number=number, **made))


def suite_of(
    rows: Rows,
    wanted: Sequence[Wanted],
    planned: Sequence[Wanted],
    measures: Sequence[tuple[str, dict[str, Any]]],
) -> dict[str, Any]:
    """Return what the suite wants, as its record states it. ``planned``: see
    `modbench.sweep.wanted.expand_planned`; its shapes are timed before all runs are known."""
    header = rows.suite.header
    stated = dict[str, dict[str, Any]]()
    for item in [*planned, *wanted]:
        row = stated.setdefault(item.label, {"label": item.label, "runs": [], "timed": []})
        if plan := plan_of(rows, item.name):
            row["isoflop"] = plan
        if (key := item.run.timed.key) not in row["timed"]:
            row["timed"].append(key)
    for item in wanted:
        if (key := item.run.key) not in stated[item.label]["runs"]:
            stated[item.label]["runs"].append(key)
    settings: dict[str, Any] = {kind: of for kind, of in measures if kind != "downstream"}
    tasks = [of for kind, of in measures if kind == "downstream"]
    compared = stated_comparisons(rows.suite.comparisons, rows.suite.axes.budgets)
    return {
        "name": header.name,
        "version": header.version,
        "rank_by": header.rank_by,
        "rows": list(stated.values()),
        "wanted": settings | ({"downstream": tasks} if tasks else {}),
    } | ({"compare": compared} if compared else {})


def crash_record(
    spec: dict[str, Any], identity: Identity, status: Any, error: str, started: datetime
) -> AnyRecord:
    """The record ``identity`` of the job ``spec``, which ended before it made it."""
    if spec["job"] == "timing":
        from modbench.sweep.timing_job import timing_record

        return timing_record(spec, spec["machine"], status, error, started)
    machine = environment(torch.float32)
    # The other entries describe this process, not the one that crashed.
    known = {name: machine[name] for name in ("cpu", "gpu", "torch")} | {"threads": spec["threads"]}
    made: dict[str, Any] = {"machine": known, "status": status, "error": error, "started": started}
    made["workers"] = spec["workers"]
    if identity[0] == "run":
        return run_record(Run.of(spec["run"]), spec["data"], **made)
    subject = next(s for s in spec["measurements"] if key_of(s) == identity[1])
    return measurement_record(subject, {}, **made)


def run_record(
    run: Run,
    data: dict[str, Any],
    machine: dict[str, Any],
    status: Any,
    error: str | None,
    started: datetime,
    **fields: Any,
) -> RunRecord:
    """The record of ``run``, which ends now. ``fields``: its other fields; none for a crash."""
    nothing: dict[str, Any] = {"metrics": {}, "ends": [], "curve": []}
    return RunRecord.made(
        run=run.as_json(),
        key=run.key,
        data=data,
        status=status,
        error=error,
        **made_by(machine, started),
        **nothing | fields,
    )


def measurement_record(
    subject: dict[str, Any],
    result: dict[str, Any],
    machine: dict[str, Any],
    status: Any,
    error: str | None,
    started: datetime,
    **fields: Any,
) -> MeasurementRecord:
    """The record of the measurement ``subject``, which ends now."""
    return MeasurementRecord.made(
        measurement=subject,
        key=key_of(subject),
        result=result,
        status=status,
        error=error,
        **made_by(machine, started),
        **fields,
    )


def made_by(machine: dict[str, Any], started: datetime) -> dict[str, Any]:
    """The fields of a record that ends now, on ``machine``, with this code."""
    return {
        "code": code_version(),
        "environment": machine,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
