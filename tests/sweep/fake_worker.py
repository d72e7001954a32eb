"""A fake of `python -m modbench.sweep.worker`: trains and measures nothing, ends as its row's label
says, and appends a record. `JOBS` are its jobs, for workers in the test's own process."""

import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from modbench.records.line import key_of
from modbench.records.record import PROTOCOL, MeasurementRecord, RunRecord, TimingRecord
from modbench.records.store import append_record
from modbench.sweep import worker
from modbench.sweep.claim import Claim
from modbench.sweep.worker import Say

JOBS = {"run": "fake_worker:run", "machine": "fake_worker:machine", "timing": "fake_worker:timing"}
Spec = dict[str, Any]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def label_of(spec: Spec) -> str:
    return spec.get("label") or spec.get("title", "").rpartition("/")[2]


def started(spec: Spec) -> None:
    Path(spec["results"], f"{label_of(spec)}.pid").write_text(str(os.getpid()))


def begin_run(spec: Spec, say: Say) -> None:
    claim = Claim(Path(spec["claim"]["path"]), spec["claim"]["token"])
    claim.beat()
    marker = Path(spec["folder"], "half_way")
    label = label_of(spec)
    with Path(spec["results"], "started.txt").open("a") as starts:
        starts.write(f"{label} {os.environ['OMP_NUM_THREADS']}\n")

    def stop(number: int, frame: object) -> None:
        marker.write_text("a checkpoint")
        sys.exit(130)

    signal.signal(signal.SIGTERM, stop)
    print(json.dumps({"event": "phase", "phase": "printed by a library"}), flush=True)
    os.write(1, b'{"event": "result", "result": {}}\n')
    say({"event": "phase", "phase": "train"})
    if label.startswith("slow") and not marker.exists():
        started(spec)
        time.sleep(60)


def misbehave(spec: Spec) -> None:
    label = label_of(spec)
    if label.startswith("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        started(spec)
        time.sleep(60)
    if label.startswith("crash"):
        raise RuntimeError("no such file: /home/someone/secret/data.txt")
    if label.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if label.startswith("ends"):  # without a result
        os._exit(0)
    if label.startswith("refused"):
        print("modbench: router 'refused' raised KeyError", file=sys.stderr)
        sys.exit(2)


def run(spec: Spec, say: Say) -> Spec:
    begin_run(spec, say)
    misbehave(spec)
    label, results = label_of(spec), Path(spec["results"])
    say({"event": "step", "phase": "train", "step": 5, "steps": 5, "loss": 1.5, "flops": 10})
    status = label.split()[0] if label.split()[0] in ("diverged", "oom") else "ok"
    error = None if status == "ok" else "as asked"
    made = {
        "code": {"version": "0", "commit": None, "dirty": None},
        "environment": {"cpu": None, "gpu": None, "threads": spec["threads"], "torch": "0"},
        "started": now(),
        "finished": now(),
    }
    if spec["train"]:
        end = dict.fromkeys(("budget", "steps", "tokens", "flops", "flops_nominal"), 1) | {"audit": []}
        record = RunRecord.made(
            run=spec["run"],
            key=key_of(spec["run"]),
            data={"sha256": "0", "train_tokens": 1, "heldout_tokens": 1},
            metrics={},
            ends=[end] if status == "ok" else [],
            curve=[],
            status=status,
            error=error,
            **made,
        )
        append_record(results, record)
    if label.startswith("recorded"):  # killed between its record and its result
        os.kill(os.getpid(), signal.SIGKILL)
    for subject in spec["measurements"]:
        if label == "measured, killed" and not Path(spec["folder"], "measured").exists():
            Path(spec["folder"], "measured").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        measured = {"result": {}, "status": "ok", "error": None}
        append_record(
            results,
            MeasurementRecord.made(measurement=subject, key=key_of(subject), **measured, **made),
        )
    return {"status": status, "error": error, "seconds": {"train": 0.1}}


def environment(spec: Spec) -> Spec:
    variables = worker._environment(spec)
    return {
        "cpu": os.environ.get("FAKE_CPU", "Imaginary CPU"),
        "gpu": None,
        "cores": 2,
        "threads": spec["threads"],
        "torch": "0",
        "dtype": "float32",
        "python": "3.11.7",
        "variables": {name: variables[name] for name in ("OMP_NUM_THREADS", "MALLOC_TOP_PAD_")},
    }


def machine(spec: Spec, say: Say) -> Spec:
    return {"environment": environment(spec)}


def timing(spec: Spec, say: Say) -> Spec:
    """Measure nothing, alone on the machine."""
    log = Path(os.environ["FAKE_LOG"])
    alone = FileLock(log.with_name("alone.lock"))
    try:
        alone.acquire(timeout=0)
    except Timeout:
        log.with_name("not alone").touch()
    try:
        return _timing(spec, say, log)
    finally:
        alone.release()


def _timing(spec: Spec, say: Say, log: Path) -> Spec:
    kind, label = spec["measures"], label_of(spec)
    with log.open("a") as file:
        file.write(f"{kind} {label}\n")
    if label.startswith("breaks") and not log.with_name("broken").exists() and kind == "training":
        log.with_name("broken").touch()
        raise ValueError("this is broken")
    if kind == "training":
        misbehave(spec)
    before = spec.get("earlier", {"next": 0, "processes": []})
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
    memory = {"measured": parts, "predicted": parts}
    found = {"status": "ok", "error": None, "asked_bytes": None}
    of_kind = {"training": times, "inference": times, "ceiling": ceilings}
    found["measured"] = of_kind.get(kind, memory)
    if label.startswith("big"):
        found |= {"status": "oom", "error": "out of memory", "asked_bytes": 77, "measured": {}}
    record = TimingRecord.made(
        session=spec["session"],
        measures=kind,
        timed=spec["timed"],
        time=spec["time"],
        key=key_of(spec["timed"]),
        repetition=spec["repetition"],
        protocol=PROTOCOL,
        code={"version": "0", "commit": None, "dirty": None},
        environment=environment(spec),
        **found,
        started=now(),
        finished=now(),
    )
    append_record(Path(spec["results"]), record)
    return {"status": record.status, "error": record.error, "seconds": {}}


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    worker.follow_parent()
    tell = worker.event_writer()
    tell({"event": "result", "result": globals()[JOBS[given["job"]].partition(":")[2]](given, tell)})
