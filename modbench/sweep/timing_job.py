"""A measurement of `modbench time`: one process takes it, and appends its record."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from modbench.measure.environment import environment
from modbench.records.run import Timed
from modbench.records.store import append_record
from modbench.sweep.job import TimeJob
from modbench.sweep.lease import Lease
from modbench.sweep.process import Say
from modbench.sweep.run_job import Stage, prepare_process
from modbench.timing import footprint
from modbench.timing.benchmark_case import BenchmarkTarget
from modbench.timing.clock import measured_ceilings, measured_times, no_result, out_of_memory
from modbench.timing.config import TimeConfig
from modbench.timing.system_load import gpu_processes
from modbench.train.numerics import check_device, make_deterministic

_MEMORY = {
    "training_memory": footprint.training_footprint,
    "inference_memory": footprint.inference_footprint,
}


def run_timing(job: TimeJob, say: Say, lease: Lease, began: float) -> dict[str, Any]:
    """Take the measurement of ``job``, alone on this machine, and store its record under ``lease``;
    return the seconds by step; or, if an error has ended this process's use of the GPU, ``earlier``:
    what the job of the process that goes on needs. ``began``: see `modbench.sweep.run_job.Stage`. Raises
    UserError: invalid plugin, router, option or shape."""
    started = datetime.now(UTC)
    stage = Stage(say, began=began)
    check_device(job.device, job.timed.train.precision)
    target = _target(job.timed, job.time, job.plugins, job.threads)
    machine = environment(target.dtype)  # an error of the GPU may prevent it later
    with stage.measuring():
        say({"event": "phase", "phase": "measuring"})
        outcome = _measured(job, target, say)
    if "earlier" in outcome:
        return outcome
    record = job.record(machine, started=started, **outcome)
    lease.check()
    append_record(job.results, record)
    return {"seconds": stage.end()}


def _target(timed: Timed, time: dict[str, Any], plugins: Sequence[str], threads: int) -> BenchmarkTarget:
    prepare_process(timed.router, plugins, threads)
    make_deterministic()
    return BenchmarkTarget.of(timed, TimeConfig(**time))


def _measured(job: TimeJob, target: BenchmarkTarget, say: Say) -> dict[str, Any]:
    """Status, error, asked_bytes and measured of a timing record, or ``earlier``. Of several failed
    cases the first is stated."""
    outcome: dict[str, Any] = {"status": "ok", "error": None, "asked_bytes": None, "measured": {}}
    kind: Any = job.measures
    try:
        if kind in _MEMORY:
            measured: dict[str, Any] = {"measured": _MEMORY[kind](target)}
        elif kind == "ceiling":
            measured = measured_ceilings(target, job.threads, say)
        else:
            measured = measured_times(kind, target, job.threads, say, job.earlier)
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


if __name__ == "__main__":  # prints the environment of a process that measures
    asked = json.loads(sys.argv[1])
    here = _target(Timed.of(asked["timed"]), asked["time"], (), asked["threads"])
    print(json.dumps(environment(here.dtype)))
