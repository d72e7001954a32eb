"""A measurement of `modbench time`: one process takes it, and appends its record."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modbench.measure import footprint
from modbench.measure.benchmark_target import BenchmarkTarget
from modbench.measure.clock import out_of_memory, timed
from modbench.measure.environment import code_version, environment
from modbench.report.record import TimingRecord, cell_key
from modbench.report.store import append_record
from modbench.sweep.cell import prepare_process
from modbench.sweep.stage import Say, Stage
from modbench.train.numerics import device, make_deterministic, precision


def run_timing(spec: dict[str, Any], say: Say) -> dict[str, Any]:
    """Take the measurement of ``spec`` (suite, run, job, cell, repetition, plugins, results, threads),
    alone on this machine, and append its record; return its status and error.

    Raises:
        UserError: invalid plugin, router, option or shape.
    """
    started, stage = datetime.now(UTC), Stage(say)
    target = _target(spec)
    router = spec["cell"]["router"]
    title = f"{spec['suite']['name']}/{router['label'] if router else 'the machine'}"
    with stage.measuring(title):
        say({"event": "phase", "phase": "measuring"})
        found = _measured(spec["job"], target, spec["threads"], say)
    record = timing_record(spec, environment(target.dtype), found, started)
    append_record(Path(spec["results"]), record)
    return {"status": record.status, "error": record.error, "seconds": stage.end()}


def timing_record(
    spec: dict[str, Any], machine: dict[str, Any], found: dict[str, Any], started: datetime
) -> TimingRecord:
    """The record of the measurement of ``spec``, which finishes now. ``found``: measured, asked_bytes,
    status, error."""
    return TimingRecord(
        run=spec["run"],
        suite=spec["suite"],
        measurement=spec["job"],
        cell=spec["cell"],
        key=cell_key(spec["cell"]),
        repetition=spec["repetition"],
        code=code_version(),
        environment=machine,
        **found,
        started=started.isoformat(timespec="milliseconds"),
        finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def describe_machine(spec: dict[str, Any], say: Say) -> dict[str, Any]:
    """The environment of a process that measures; its parent does not use the GPU."""
    cell = {**spec["cell"], "router": None}
    prepare_process({**spec, "cell": cell})
    dtype = precision(cell["train"]["precision"], device())
    if cell["time"].get("deterministic"):
        make_deterministic()
    return {"environment": environment(dtype)}


def measure_peak(spec: dict[str, Any], say: Say) -> dict[str, Any]:
    """The ``peak`` bytes of a training step of the cell of ``spec``, or the ``error`` of a failed
    allocation."""
    try:
        return {"peak": footprint.training_footprint(_target(spec))["peak"], "error": None}
    except Exception as error:
        lack = out_of_memory(error)
        if lack is None:
            raise
        return {"peak": None, "error": lack["error"]}


def _target(spec: dict[str, Any]) -> BenchmarkTarget:
    prepare_process(spec)
    if spec["cell"]["time"].get("deterministic"):
        make_deterministic()
    return BenchmarkTarget.of(spec["cell"])


def _measured(job: str, target: BenchmarkTarget, threads: int, say: Say) -> dict[str, Any]:
    """Measured, asked_bytes, status and error of a timing record."""
    found: dict[str, Any] = {"status": "ok", "error": None, "asked_bytes": None, "measured": {}}
    try:
        measured = _of(job, target, threads, say)
    except Exception as error:
        lack = out_of_memory(error)
        if lack is None:
            raise
        return found | {"status": "oom"} | lack
    failed = measured.pop("failed", [])
    return found | {"measured": measured} | _outcome(measured.get("ran_out", []), failed)


def _of(job: str, target: BenchmarkTarget, threads: int, say: Say) -> dict[str, Any]:
    if job in ("time", "ceiling"):
        return timed(job, target, threads, say)
    if job == "training_memory":
        measured = footprint.training_footprint(target)
        return {"measured": measured, "predicted": footprint.predicted_training(target)}
    assert job == "inference_memory", job
    measured = footprint.inference_footprint(target)
    return {"measured": measured, "predicted": footprint.predicted_inference(target)}


def _outcome(ran_out: list[dict[str, Any]], failed: list[str]) -> dict[str, Any]:
    """Status and error of a process with cases that ``ran_out`` of memory or ``failed``."""
    outcome = {}
    if ran_out:
        first = ran_out[0]
        error = _first_of(len(ran_out), f"{first['name']}: {first['error']}")
        outcome = {"status": "oom", "asked_bytes": first["asked_bytes"], "error": error}
    if failed:
        errors = filter(None, (_first_of(len(failed), failed[0]), outcome.get("error")))
        outcome |= {"status": "failed", "error": "; ".join(errors)}
    return outcome


def _first_of(cases: int, first: str) -> str:
    return first if cases == 1 else f"{cases} cases, the first {first}"
