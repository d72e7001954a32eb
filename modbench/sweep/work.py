"""The job of one run: its audit and training, then measurements of its weights, a record each.

A job that was killed or stopped resumes from its checkpoint: it loses at most the training since then.
Work that has a record is not done again; a measurement that fails leaves the training as it is.
"""

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from modbench.data.token_data import load
from modbench.measure.environment import environment
from modbench.sweep.job import RunJob, measurement_record, run_record
from modbench.sweep.lease import Lease
from modbench.sweep.process import Say
from modbench.sweep.run_job import RunWork, Stage, prepare_process
from modbench.sweep.steps.audit import audit
from modbench.sweep.steps.downstream import downstream
from modbench.sweep.steps.heldout import heldout
from modbench.sweep.steps.routing import routing, routing_rules
from modbench.sweep.steps.train import train
from modbench.sweep.worker import stop_signals
from modbench.timing.footprint import release_memory
from modbench.timing.stopwatch import matmul_rate
from modbench.train.loop import DivergedError
from modbench.train.numerics import check_device, make_deterministic
from modbench.train.out_of_memory import LESS_MEMORY, failed_allocation, out_of_memory_sentence
from modbench.trained.weights_folder import DESCRIPTION, WEIGHTS


def run_job(job: RunJob, say: Say, lease: Lease, began: float) -> dict[str, Any]:
    """Do ``job`` and store its records under ``lease``; return the seconds by step, and ``lost``, status
    and error of an audit that had not enough memory. ``say`` receives events of steps; ``began``: see
    `Stage`.

    Raises:
        UserError: a plugin, router or corpus differs from what the run states, or a folder can't be
            written.
        StoppedError: a stop signal arrived; the state is saved.
        LostError: another process took the lease over; nothing is written any more.
    """
    stops: list[int] = []

    def stop() -> bool:
        lease.watch()
        return bool(stops)

    with stop_signals(stops.append):
        stage = Stage(say, stop, began=began)
        prepare_process(job.run.router, job.plugins, job.threads)
        check_device(job.device, job.run.train.precision)
        make_deterministic()
        work = RunWork(job, load(job.run.data), stage, lease)
        try:
            lost = _all(work)
        finally:
            work.trackers.close()
        _tidy(work)
        return {"seconds": stage.end()} | ({"lost": lost} if lost else {})


_Outcome = tuple[str, str | None]


def _all(work: RunWork) -> _Outcome | None:
    """Audit and train if it is asked for, then measure; store a record of each. The first that is not ok
    ends it, but for an audit: a later command audits the scheme, and the run needs less memory. Returns
    the outcome of such an audit."""
    job, lost = work.job, None
    asked = [subject["measures"] for subject in job.measurements]
    if job.audit and (job.train or "audit" in asked):
        work.stage.begin("audit")
        status, error = _outcome(lambda: audit(work))
        if status != "ok":
            lost = status, f"audit: {error}"
            asked = [measures for measures in asked if measures != "audit"]
            release_memory(work.device)
    if job.train and _train(work) != "ok":
        return lost
    for subject in job.measurements:
        if subject["measures"] in asked and _measure(work, subject) != "ok":
            break
    return lost


def _train(work: RunWork) -> str:
    """Train the run and store its record; return its status."""
    started = datetime.now(UTC)
    work.stage.begin("train")
    work.say({"event": "machine", "flops_per_second": matmul_rate(work.dtype, work.device)})
    status, error = _outcome(lambda: train(work))
    if status == "oom":
        error = f"{error}; {LESS_MEMORY}"
    record = run_record(
        work.run,
        work.data.summary(),
        environment(work.dtype) | {"world_size": work.train.ranks},
        status,
        error,
        started,
        audit_key=work.audit_key,
        workers=work.job.workers,
        seconds=work.stage.spent(),
        **work.fields,
    )
    work.store(record)
    return status


def _measure(work: RunWork, subject: dict[str, Any]) -> str:
    """Take the measurement ``subject`` and store its record; return its status."""
    started = datetime.now(UTC)
    result = dict[str, Any]()
    work.stage.begin(subject["measures"])
    status, error = _outcome(lambda: result.update(_result(work, subject)))
    record = measurement_record(
        subject,
        result,
        environment(work.dtype),
        status,
        error,
        started,
        workers=work.job.workers,
        seconds=work.stage.spent(),
    )
    work.store(record)
    return status


def _outcome(do: Callable[[], object]) -> _Outcome:
    """Call ``do``; return status and error."""
    try:
        do()
    except DivergedError as reason:
        return "diverged", str(reason)
    except Exception as reason:
        failed = failed_allocation(reason)
        if failed is None:
            raise
        return "oom", out_of_memory_sentence(failed)
    return "ok", None


def _result(work: RunWork, subject: Mapping[str, Any]) -> dict[str, Any]:
    """The result of the measurement ``subject``. Raises DivergedError: a metric is not finite."""
    kind = subject["measures"]
    settings = subject["settings"]
    budget = subject["budget"]
    if kind == "audit":
        return {"audit_key": work.audit_key}
    steps = {"heldout": heldout, "downstream": downstream, "routing": routing, "rules": routing_rules}
    result = steps[kind](work.trained_model(), work, settings, budget)
    metrics = result.get("metrics", {})
    for name, value in metrics.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise DivergedError(f"{name} of the trained model is {value}")
    work.say({"event": "metrics", "metrics": metrics})
    return result


def _tidy(work: RunWork) -> None:
    """Remove what the run no longer needs: its checkpoint, and weights that the suite doesn't keep."""
    (work.folder / "checkpoint.pt").unlink(missing_ok=True)
    if work.job.keep == "none":
        for name in (WEIGHTS, DESCRIPTION):
            (work.folder / name).unlink(missing_ok=True)
