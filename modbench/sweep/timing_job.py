"""A measurement of `modbench time`: one process takes it, and appends its record."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modbench.hf.config import is_predicted
from modbench.measure.environment import code_version, environment
from modbench.records.line import key_of
from modbench.records.record import PROTOCOL, TimingRecord
from modbench.records.run import Timed
from modbench.records.store import append_record
from modbench.sweep.run_job import Say, Stage, prepare_process
from modbench.timing import footprint
from modbench.timing.benchmark_case import BenchmarkTarget
from modbench.timing.clock import measured_ceilings, measured_times, no_result, out_of_memory
from modbench.timing.config import TimeConfig
from modbench.timing.system_load import gpu_processes
from modbench.train.numerics import make_deterministic

#: Measurements of memory, with their predictions.
_MEMORY: dict[str, Any] = {
    "training_memory": (footprint.training_footprint, footprint.predicted_training),
    "inference_memory": (footprint.inference_footprint, footprint.predicted_inference),
}


def run_timing(spec: dict[str, Any], say: Say) -> dict[str, Any]:
    """Take the measurement of ``spec`` (see `modbench.sweep.timings.TimingPlan`), alone on this machine,
    and append its record; return its status, error and seconds; or, if an error has ended this
    process's use of the GPU, ``earlier``: what the specification of the process that goes on needs.
    Raises UserError: invalid plugin, router, option or shape."""
    started = datetime.now(UTC)
    stage = Stage(say)
    target = _target(spec)
    machine = environment(target.dtype)  # an error of the GPU may prevent it later
    with stage.measuring(spec["title"]):
        say({"event": "phase", "phase": "measuring"})
        outcome = _measured(spec, target, say)
    if "earlier" in outcome:
        return outcome
    record = timing_record(spec, machine, started=started, **outcome)
    append_record(Path(spec["results"]), record)
    return {"status": record.status, "error": record.error, "seconds": stage.end()}


def timing_record(
    spec: dict[str, Any],
    machine: dict[str, Any],
    status: Any,
    error: str | None,
    started: datetime,
    *,
    asked_bytes: int | None = None,
    measured: dict[str, Any] | None = None,
) -> TimingRecord:
    """The record of the measurement of ``spec``, which finishes now."""
    return TimingRecord.made(
        session=spec["session"],
        measures=spec["measures"],
        timed=spec["timed"],
        time=spec["time"],
        protocol=PROTOCOL,
        key=key_of(spec["timed"]),
        repetition=spec["repetition"],
        code=code_version(),
        environment=machine,
        status=status,
        error=error,
        asked_bytes=asked_bytes,
        measured=measured or {},
        started=started.isoformat(timespec="milliseconds"),
        finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def describe_machine(spec: dict[str, Any], say: Say) -> dict[str, Any]:
    """The environment of a process that measures; its parent does not use the GPU."""
    return {"environment": environment(_target(spec).dtype)}


def _target(spec: dict[str, Any]) -> BenchmarkTarget:
    timed, time = Timed.of(spec["timed"], spec.get("hf_folder")), TimeConfig(**spec["time"])
    prepare_process(timed.router, spec["plugins"], spec["threads"])
    make_deterministic()
    return BenchmarkTarget.of(timed, time)


def _measured(spec: dict[str, Any], target: BenchmarkTarget, say: Say) -> dict[str, Any]:
    """Status, error, asked_bytes and measured of a timing record, or ``earlier``. Of several failed
    cases the first is stated."""
    outcome: dict[str, Any] = {"status": "ok", "error": None, "asked_bytes": None, "measured": {}}
    kind = spec["measures"]
    try:
        if kind in _MEMORY:
            measure, predict = _MEMORY[kind]
            measured = {"measured": measure(target)}
            if is_predicted(target.config):
                measured["predicted"] = predict(target)
        elif kind == "ceiling":
            measured = measured_ceilings(target, spec["threads"], say)
        else:
            measured = measured_times(kind, target, spec["threads"], say, spec.get("earlier"))
            if "next" in measured:
                return {"earlier": measured}
    except Exception as error:
        lack = out_of_memory(error)
        if lack is None:
            raise
        if others := gpu_processes():
            return outcome | {"status": "failed", "error": no_result(lack, others)}
        return outcome | {"status": "oom"} | lack
    failed, ran_out = measured.pop("failed", []), measured.get("ran_out", [])
    errors = [*failed, *(f"{case['name']}: {case['error']}" for case in ran_out)]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        outcome |= {"status": "failed" if failed else "oom", "error": errors[0] + more}
        outcome["asked_bytes"] = ran_out[0]["asked_bytes"] if ran_out else None
    return outcome | {"measured": measured}
