"""A run that several processes train together ([train] parallel): the job's process starts `torchrun`,
whose processes run `main`. They share the run's folder; the first one reports by files in it.

    ranks.json          the job, for the processes
    rank-events.jsonl   events of training
    rank-outcome.json   what training gave, or why it ended
    rank-stop           asks the processes to store a checkpoint and end
"""

import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from modbench.data.token_data import load
from modbench.errors import UserError
from modbench.records.run import Run
from modbench.routing.plugin_fault import at, raised
from modbench.sweep.claim import born
from modbench.sweep.engine import refuse_missing_devices
from modbench.sweep.run_job import RunJob, Stage, prepare_process
from modbench.sweep.steps.training import restored, train_part
from modbench.train.loop import DivergedError, StoppedError, Trained
from modbench.train.numerics import make_deterministic
from modbench.train.out_of_memory import failed_allocation, out_of_memory_sentence
from modbench.train.rank_group import RankGroup

#: Times that a process which was killed is replaced, and all go on from the checkpoint.
RESTARTS = 3
_POLL_SECONDS = 0.2
_TOLD_SECONDS = 5.0  #: between two events that say that the processes live
_SPEC, _EVENTS, _OUTCOME, _STOP = "ranks.json", "rank-events.jsonl", "rank-outcome.json", "rank-stop"


class OutOfMemoryError(RuntimeError):
    """A process of the run had not enough memory."""


def train_by_ranks(job: RunJob) -> Trained:
    """Train the run of ``job`` in as many processes as it asks for.

    Raises:
        StoppedError: a stop was requested; the state of training is saved.
        DivergedError: a loss or a weight is not finite.
        UserError: there are fewer GPUs than processes, or the processes ended without an outcome.
    """
    ranks = job.train.ranks
    refuse_missing_devices(ranks)
    for name in (_EVENTS, _OUTCOME, _STOP):
        (job.folder / name).unlink(missing_ok=True)
    owner = psutil.Process()
    spec = job.spec | {"owner": [owner.pid, born(owner)]}
    (job.folder / _SPEC).write_text(json.dumps(spec))
    # A restart by torchrun itself may hang where the processes meet again (seen with PyTorch 2.13).
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"]
    command += ["--nproc-per-node", str(ranks), "-m", "modbench.sweep.rank", str(job.folder / _SPEC)]
    read = 0
    for _ in range(1 + RESTARTS):
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            read = _follow(process, job, read)
        if (job.folder / _OUTCOME).exists():
            break
    try:
        return _outcome(job.folder)
    finally:
        for name in (_SPEC, _EVENTS, _OUTCOME, _STOP):
            (job.folder / name).unlink(missing_ok=True)


def _follow(process: subprocess.Popen[bytes], job: RunJob, read: int) -> int:
    """Pass events on, from byte ``read``, and ask for a stop, until ``process`` ends; return the byte
    after the last event."""
    told = time.monotonic()
    while process.poll() is None:
        if job.stage.stopped():
            (job.folder / _STOP).touch()
        read = _pass_on(job, read)
        if time.monotonic() - told > _TOLD_SECONDS:
            job.stage.tell()
            told = time.monotonic()
        time.sleep(_POLL_SECONDS)
    return _pass_on(job, read)


def _pass_on(job: RunJob, read: int) -> int:
    """Send the whole lines of events after byte ``read``; return the byte after them."""
    path = job.folder / _EVENTS
    if not path.exists():
        return read
    with path.open("rb") as file:
        file.seek(read)
        for line in file:
            if not line.endswith(b"\n"):
                break
            read += len(line)
            job.say(json.loads(line))
    return read


def _outcome(folder: Path) -> Trained:
    try:
        outcome = json.loads((folder / _OUTCOME).read_text())
    except FileNotFoundError:
        raise UserError(
            f"a process that trains the run ended each of {1 + RESTARTS} times; see {folder / 'log.txt'}"
        ) from None
    match outcome["status"]:
        case "ok":
            return restored(outcome["trained"])
        case "stopped":
            raise StoppedError
        case "diverged":
            raise DivergedError(outcome["error"])
        case "oom":
            raise OutOfMemoryError(outcome["error"])
    raise UserError(outcome["error"])


def main() -> int:
    """One of the processes, started by torchrun. Only the first one reports."""
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(spec["folder"])
    run = Run.of(spec["run"])
    on = "cuda" if torch.cuda.is_available() else "cpu"
    if on == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    ranks = RankGroup.joined(run.train, on)

    def say(event: dict[str, Any]) -> None:
        if ranks.leads:
            with (folder / _EVENTS).open("a") as file:
                file.write(json.dumps(event) + "\n")

    def stop() -> bool:
        if _ended(spec["owner"]):  # another process may take the run over
            os._exit(1)
        return (folder / _STOP).exists()

    def report(**outcome: Any) -> None:
        half = folder / f"{_OUTCOME}.{ranks.number}"
        half.write_text(json.dumps(outcome))
        half.replace(folder / _OUTCOME)

    try:
        prepare_process(run.router, spec["plugins"], spec["threads"])
        make_deterministic()
        job = RunJob(spec | {"track": {}}, load(run.data), Stage(say, stop, pauses=False))
        trained = train_part(job, ranks)
    except StoppedError:
        report(status="stopped")
    except DivergedError as error:
        report(status="diverged", error=str(error))
    except UserError as error:
        report(status="refused", error=str(error))
        return 2
    except Exception as error:
        failed = failed_allocation(error)
        if failed is not None:
            report(status="oom", error=out_of_memory_sentence(failed))
            return 1
        if at(error):  # else another process may have been killed, and all start again
            traceback.print_exception(error)
            fault = raised(error, remedy="fix it and run again")
            report(status="refused", error=f"router '{run.router.name}' {fault}")
            return 2
        raise
    else:
        if ranks.leads:
            report(status="ok", trained=asdict(trained))
    torch.distributed.destroy_process_group()
    return 0


def _ended(owner: list[float]) -> bool:
    """True if the process that started the training has ended."""
    pid, since = owner
    try:
        return born(psutil.Process(int(pid))) != since
    except psutil.NoSuchProcess:
        return True


if __name__ == "__main__":
    sys.exit(main())
