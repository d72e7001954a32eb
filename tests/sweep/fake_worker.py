"""A worker whose jobs train and measure nothing, end as their row's label says, and store a record."""

import json
import os
import signal
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from modbench.errors import UserError
from modbench.records.line import key_of
from modbench.records.record import MeasurementRecord, RunRecord
from modbench.records.store import append_record
from modbench.sweep import process, worker
from modbench.sweep.job import Job, RunJob, TimeJob
from modbench.sweep.lease import Lease
from modbench.sweep.process import Say
from modbench.trained.weights_folder import WEIGHTS

JOBS = {"run": "fake_worker:run", "time": "fake_worker:timing"}
Fields = dict[str, Any]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def started(job: Job) -> None:
    Path(job.results, f"{job.label}.pid").write_text(str(os.getpid()))


def begin_run(job: RunJob, say: Say) -> None:
    marker = job.folder / "half_way"
    with Path(job.results, "started.txt").open("a") as starts:
        starts.write(f"{job.label} {os.environ['OMP_NUM_THREADS']}\n")

    def stop(number: int, frame: object) -> None:
        marker.write_text("a checkpoint")
        raise StoppedByTestError

    signal.signal(signal.SIGTERM, stop)
    print(json.dumps({"event": "phase", "phase": "printed by a library"}), flush=True)
    os.write(1, b'{"event": "end", "code": 0, "error": ""}\n')
    say({"event": "phase", "phase": "train"})
    if job.label.startswith("slow") and not marker.exists():
        started(job)
        time.sleep(60)


class StoppedByTestError(Exception):
    pass


def misbehave(job: Job) -> None:
    label = job.label
    if label.startswith("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        started(job)
        time.sleep(60)
    if label.startswith("crash"):
        raise RuntimeError("no such file: /home/someone/secret/data.txt")
    if label.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if label.startswith("ends"):  # without a word
        os._exit(0)
    if label.startswith("refused"):
        raise UserError("router 'refused' raised KeyError")


def run(job: RunJob, say: Say, lease: Lease, began: float) -> Fields:
    begin_run(job, say)
    misbehave(job)
    label = job.label
    say({"event": "step", "phase": "train", "step": 5, "steps": 5, "loss": 1.5, "flops": 10})
    status = label.split()[0] if label.split()[0] in ("diverged", "oom") else "ok"
    made = {
        "code": {"version": "0", "commit": None, "dirty": None},
        "environment": {"cpu": None, "gpu": None, "threads": job.threads, "torch": "0"},
        "started": now(),
        "finished": now(),
    }
    if job.train:
        end = dict.fromkeys(("budget", "steps", "tokens", "flops", "flops_nominal"), 1) | {"audit": []}
        record = RunRecord.made(
            run=job.run.as_json(),
            key=job.run.key,
            data={"sha256": "0", "train_tokens": 1, "heldout_tokens": 1},
            metrics={},
            ends=[end] if status == "ok" else [],
            curve=[],
            status=status,
            error=None if status == "ok" else "as asked",
            **made,
        )
        (job.folder / WEIGHTS).touch()
        lease.check()
        append_record(job.results, record)
    if label.startswith("recorded"):  # killed between its record and its last event
        os.kill(os.getpid(), signal.SIGKILL)
    for subject in job.measurements:
        if label == "measured, killed" and not (job.folder / "measured").exists():
            (job.folder / "measured").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        measured = {"result": {}, "status": "ok", "error": None}
        record = MeasurementRecord.made(measurement=subject, key=key_of(subject), **measured, **made)
        append_record(job.results, record)
    return {"seconds": {"train": 0.1}}


def environment(threads: int) -> Fields:
    variables = process.environment_of(threads)
    return {
        "cpu": os.environ.get("FAKE_CPU", "Imaginary CPU"),
        "gpu": None,
        "cores": 2,
        "threads": threads,
        "torch": "0",
        "dtype": "float32",
        "python": "3.11.7",
        "variables": {name: variables[name] for name in ("OMP_NUM_THREADS", "MALLOC_TOP_PAD_")},
    }


def timing(job: TimeJob, say: Say, lease: Lease, began: float) -> Fields:
    """Measure nothing, alone on the machine."""
    log = Path(os.environ["FAKE_LOG"])
    alone = FileLock(log.with_name("alone.lock"))
    try:
        alone.acquire(timeout=0)
    except Timeout:
        log.with_name("not alone").touch()
    try:
        return _timing(job, say, log)
    finally:
        alone.release()


def _timing(job: TimeJob, say: Say, log: Path) -> Fields:
    kind, label = job.measures, job.label.rpartition("/")[2]
    with log.open("a") as file:
        file.write(f"{kind} {label}\n")
    if label.startswith("breaks") and not log.with_name("broken").exists() and kind == "training":
        log.with_name("broken").touch()
        raise ValueError("this is broken")
    if kind == "training":
        misbehave(job)
    before = job.earlier or {"next": 0, "processes": []}
    if label.startswith("sticky") and kind == "training" and before["next"] < 2:
        return {
            "earlier": {"next": before["next"] + 1, "processes": [*before["processes"], os.getpid()]}
        }
    if before["processes"]:
        log.with_name("processes").write_text(json.dumps([*before["processes"], os.getpid()]))
    say({"event": "phase", "phase": "nothing"})
    spent = dict.fromkeys(("model", "full", "executed"), 1000)
    case = {
        "name": "prefill 8 x 1" if kind == "inference" else "forward",
        "phase": "prefill" if kind == "inference" else "forward",
        "sequences": 1,
        "tokens": 8,
        "past": 0,
        "seconds": [0.1, 0.1, 0.1],
        "loops": 1,
        "flops": dict.fromkeys(("nominal", "realised", "dispatched"), spent),
        "joules": None,
        "gpu": None,
    }
    machine = {"overloaded": False}
    times = {"cases": [case], "balance": "forced", "compiled": False, "machine": machine}
    ceilings = {"gemm": [], "copy_bytes_per_second": 1.0, "machine": machine, "gpu": None}
    parts = {"parameters": 1, "gradients": 1, "optimizer": 2, "activations": 6, "peak": 10}
    memory = {"measured": parts}
    of_kind = {"training": times, "inference": times, "ceiling": ceilings}
    how: Fields = {"status": "ok", "error": None, "measured": of_kind.get(kind, memory)}
    if label.startswith("big"):
        how = {"status": "oom", "error": "out of memory", "asked_bytes": 77}
    append_record(job.results, job.record(environment(job.threads), started=datetime.now(UTC), **how))
    return {"seconds": {}}


def fault(spec: Fields, error: BaseException) -> tuple[int, str]:
    """A fake job has no router that could be blamed."""
    if isinstance(error, StoppedByTestError):
        return worker.STOPPED, "stopped by a signal"
    traceback.print_exception(error)
    return 1, f"exit code 1: {process.one_line(traceback.format_exception_only(error)[-1])}"


def install() -> None:
    """Have workers of this process do the fake jobs."""
    worker.JOBS, worker._fault = JOBS, fault
    sys.modules["fake_worker"] = sys.modules[__name__]


if __name__ == "__main__":
    install()
    sys.exit(worker.main(sys.argv[1:]))
