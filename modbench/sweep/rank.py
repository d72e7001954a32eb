"""A run that several processes train together ([train] parallel): the job's process starts `torchrun`,
whose processes run `main` on the job's file. They share the run's folder, and report by files in it.

    rank-events.jsonl   events of training; the last one has what it gave, or why it ended
    rank-stop           asks the processes to store a checkpoint and end
"""

import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from modbench.data.token_data import load
from modbench.errors import UserError
from modbench.routing.plugin_fault import at, raised
from modbench.sweep.job import RunJob, read_job
from modbench.sweep.local import refuse_missing_devices
from modbench.sweep.process import FILE, Events, end_all, follow
from modbench.sweep.run_job import RunWork, Stage, prepare_process
from modbench.sweep.steps.training import restored, train_part
from modbench.sweep.track import TrackConfig
from modbench.timing.footprint import release_memory
from modbench.train.loop import DivergedError, StoppedError, Trained
from modbench.train.numerics import make_deterministic
from modbench.train.out_of_memory import failed_allocation
from modbench.train.ranks import Ranks

#: Times that a process which was killed is replaced, and all go on from the checkpoint.
RESTARTS = 3
_POLL_SECONDS = 0.2
#: Timeouts of a job for which a process waits for the others; the command ends them all after one.
_PATIENCE = 2
_EVENTS, _STOP = "rank-events.jsonl", "rank-stop"
_OWNER = "MODBENCH_TORCHRUN"  #: environment variable: the process id of torchrun
#: Runs torchrun, which follows the process of its first argument.
_TORCHRUN = f"""
import os, sys
from modbench.sweep.process import follow
follow(int(sys.argv[1]))
os.environ["{_OWNER}"] = str(os.getpid())
from torch.distributed.run import main
main(sys.argv[2:])
"""
#: How a process ends training before its budget is spent, and what the job's process raises then.
_ENDS: dict[str, type[Exception]] = {
    "stopped": StoppedError,
    "diverged": DivergedError,
    "refused": UserError,
    "out of memory": MemoryError,
}


def train_by_ranks(work: RunWork) -> Trained:
    """Train the run of ``work`` in as many processes as it asks for.

    Raises:
        StoppedError: a stop was requested; the state of training is saved.
        DivergedError: a loss or a weight is not finite.
        UserError: there are fewer GPUs than processes, or the processes ended without an outcome.
    """
    ranks = work.train.ranks
    refuse_missing_devices(ranks)
    release_memory(work.device)  # of the audit, on the first GPU
    files = [work.folder / name for name in (_EVENTS, _STOP)]
    for file in files:
        file.unlink(missing_ok=True)
    # A restart by torchrun itself may hang where the processes meet again (seen with PyTorch 2.13).
    command = [sys.executable, "-P", "-c", _TORCHRUN, str(os.getpid()), "--standalone"]
    command += ["--max-restarts", "0", "--nproc-per-node", str(ranks)]
    command += ["-m", "modbench.sweep.rank", str(work.folder)]
    events = Events(work.folder, _EVENTS)
    try:
        for _ in range(1 + RESTARTS):
            # In a session of its own, Ctrl-C at a terminal reaches it as a stop alone.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
            try:
                while process.poll() is None:
                    if work.stage.stopped():
                        files[1].touch()
                    _pass_on(events, work)
                    time.sleep(_POLL_SECONDS)
            finally:
                end_all(process)
            _pass_on(events, work)
            if (end := events.end) and end["status"] == "ok":
                return restored(end["trained"])
            if end:
                raise _ENDS[end["status"]](end["error"])
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    raise UserError(
        f"a process that trains the run ended each of {1 + RESTARTS} times; see {work.job.log}"
    )


def _pass_on(events: Events, work: RunWork) -> None:
    for event in events.new():
        if event["event"] != "end":
            work.say(event)


def main() -> int:
    """One of the processes, started by torchrun. Only the first one reports events."""
    folder = Path(sys.argv[1])
    job = read_job((folder / FILE).read_bytes())
    assert isinstance(job, RunJob)
    follow(int(os.environ[_OWNER]))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    ranks = Ranks.join(_PATIENCE * job.timeout)
    events = Events(folder, _EVENTS)

    def report(status: str, error: str = "", **more: Any) -> None:
        events.say({"event": "end", "status": status, "error": error, **more})

    try:
        prepare_process(job.run.router, job.plugins, job.threads)
        make_deterministic()
        stage = Stage(events.say if ranks.leads else lambda event: None, (folder / _STOP).exists)
        untracked = replace(job, track=TrackConfig())
        trained = train_part(RunWork(untracked, load(job.run.data), stage), ranks)
    except StoppedError:
        if ranks.leads:  # it has stored the checkpoint
            report("stopped")
    except (DivergedError, UserError) as error:
        report("diverged" if isinstance(error, DivergedError) else "refused", str(error))
        return 2
    except Exception as error:
        if failed := failed_allocation(error):
            report("out of memory", str(failed))
        elif at(error):  # else another process may have been killed, and all start again
            fault = raised(error, remedy="fix it and run again")
            report("refused", f"router '{job.run.router.name}' {fault}")
        raise
    else:
        if ranks.leads:
            report("ok", trained=asdict(trained))
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
