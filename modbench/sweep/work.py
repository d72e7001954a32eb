"""The job of one run: its audit and training, then measurements of its weights, a record each.

A job that was killed or stopped resumes from its checkpoint: it loses at most the training since then.
Work that has a record is not done again; a measurement that fails leaves the training as it is.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from modbench.data.token_data import load
from modbench.errors import UserError
from modbench.hf.config import is_predicted
from modbench.measure.environment import environment
from modbench.records.run import Run
from modbench.sweep.claim import Claim
from modbench.sweep.costs import measured_pass, outlined, room, smaller_pass
from modbench.sweep.jobs import measurement_record, run_record
from modbench.sweep.run_job import RunJob, Say, Stage, prepare_process
from modbench.sweep.steps.audit import audit
from modbench.sweep.steps.downstream import downstream
from modbench.sweep.steps.heldout import heldout
from modbench.sweep.steps.train import train
from modbench.sweep.worker import stop_signals
from modbench.timing.footprint import release_memory
from modbench.timing.stopwatch import matmul_rate
from modbench.train.loop import DivergedError
from modbench.train.numerics import make_deterministic
from modbench.train.out_of_memory import failed_allocation, out_of_memory_sentence
from modbench.trained.weights_folder import DESCRIPTION


def run_job(spec: dict[str, Any], say: Say) -> dict[str, Any]:
    """Do what ``spec`` asks for and append the records; return status and error of the first that is
    not ok, and the seconds by step. ``say`` receives events of steps.

    Raises:
        UserError: a plugin, router or corpus differs from what the run states, a folder can't be
            written, or another process works on this run.
        StoppedError: a stop signal arrived; the state is saved.
    """
    stops: list[int] = []
    with stop_signals(stops.append), _held(spec, stops) as claim:
        stage = Stage(say, lambda: bool(stops), pauses=spec["wait"])
        run = Run.of(spec["run"])
        prepare_process(run.router, spec["plugins"], spec["threads"])
        make_deterministic()
        job = RunJob(spec, load(run.data), stage, claim)
        try:
            outcomes = list(_outcomes(job))
        finally:
            job.trackers.close()
        lost = [outcome for outcome in outcomes if outcome[0] != "ok"]
        status, error = lost[0] if lost else ("ok", None)
        _tidy(job)
        return {"status": status, "error": error, "seconds": stage.end()}


def _held(spec: Mapping[str, Any], stops: list[int]) -> AbstractContextManager[Claim]:
    """Hold the claim of the run, which the process that started this one has made. If another process
    takes over, this one stops."""
    claim = Claim(Path(spec["claim"]["path"]), spec["claim"]["token"])
    return claim.kept(lambda: stops.append(0))


_Outcome = tuple[str, str | None]


def _outcomes(job: RunJob) -> Iterator[_Outcome]:
    """Train if it is asked for, then measure; store a record of each and yield its status and error. The
    first that is not ok ends it."""
    asked = [subject["measures"] for subject in job.spec["measurements"]]
    if job.spec["audit"] and (job.spec["train"] or "audit" in asked):
        job.stage.begin("audit")
        status, error = _outcome(lambda: audit(job))
        if status != "ok":  # a later command audits the scheme; the run needs less memory
            yield status, f"audit: {error}"
            asked = [measures for measures in asked if measures != "audit"]
            release_memory(job.device)
    works = [partial(_train, job)] if job.spec["train"] else []
    subjects = [each for each in job.spec["measurements"] if each["measures"] in asked]
    works += [partial(_measure, job, subject) for subject in subjects]
    for work in works:
        outcome = work()
        yield outcome
        if outcome[0] != "ok":
            return


def _train(job: RunJob) -> _Outcome:
    """Train the run and store its record."""
    started = datetime.now(UTC)
    job.stage.begin("train")
    job.say({"event": "machine", "flops_per_second": matmul_rate(job.dtype, job.device)})
    status, error = _outcome(lambda: train(job))
    if status == "oom":
        error = f"{error}{_advice(job)}"
    record = run_record(
        job.run,
        job.data.summary(),
        environment(job.dtype) | {"world_size": job.train.ranks},
        status,
        error,
        started,
        audit_key=job.audit_key,
        workers=job.spec["workers"],
        seconds=job.stage.spent(),
        **job.fields,
    )
    job.store(record)
    return status, error


def _advice(job: RunJob) -> str:
    """What to change for a run whose memory can be predicted."""
    with suppress(UserError):  # a router that reads values, which a prediction lacks
        if is_predicted(job.run.model):
            measured = measured_pass(job.run, outlined(job.run))
            there = room() or psutil.virtual_memory().total
            return f"; {smaller_pass(job.run, measured, there)}"
    return "; take a smaller model, or fewer sequences in [train] micro_batch"


def _measure(job: RunJob, subject: dict[str, Any]) -> _Outcome:
    """Take the measurement ``subject`` and store its record."""
    started = datetime.now(UTC)
    result = dict[str, Any]()
    job.stage.begin(subject["measures"])
    status, error = _outcome(lambda: result.update(_result(job, subject)))
    record = measurement_record(
        subject,
        result,
        environment(job.dtype),
        status,
        error,
        started,
        workers=job.spec["workers"],
        seconds=job.stage.spent(),
    )
    job.store(record)
    return status, error


def _outcome(work: Callable[[], object]) -> _Outcome:
    """Do ``work``; return status and error."""
    try:
        work()
    except DivergedError as reason:
        return "diverged", str(reason)
    except Exception as reason:
        failed = failed_allocation(reason)
        if failed is None:
            raise
        return "oom", out_of_memory_sentence(failed)
    return "ok", None


def _result(job: RunJob, subject: Mapping[str, Any]) -> dict[str, Any]:
    """The result of the measurement ``subject``. Raises DivergedError: a metric is not finite."""
    kind = subject["measures"]
    settings = subject["settings"]
    budget = subject["budget"]
    if kind == "audit":
        return {"audit_key": job.audit_key}
    measure = {"heldout": heldout, "downstream": downstream}[kind]
    result = measure(job.trained_model(budget), job, settings, budget)
    metrics = result.get("metrics", {})
    for name, value in metrics.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise DivergedError(f"{name} of the trained model is {value}")
    job.say({"event": "metrics", "metrics": metrics})
    return result


def _tidy(job: RunJob) -> None:
    """Remove what the run no longer needs: its checkpoint, and weights that the suite doesn't keep."""
    (job.folder / "checkpoint.pt").unlink(missing_ok=True)
    if job.spec["keep"] == "none":
        for path in job.folder.glob("*.safetensors"):
            path.unlink()
        shutil.rmtree(job.folder / "points", ignore_errors=True)
        (job.folder / DESCRIPTION).unlink(missing_ok=True)
    elif job.spec["keep"] != "all" and not job.spec["points"]:
        shutil.rmtree(job.folder / "points", ignore_errors=True)
