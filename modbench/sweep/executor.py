"""Executors: what runs the workers of jobs, on this machine (`modbench.sweep.local`), on Slurm or on
Ray. They hand over, tell what is alive, and stop; what became of a job is its records in the shared
folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from modbench.errors import UserError
from modbench.sweep.job import Job

Tell = Callable[[str], None]
#: Variables that a node may lack: the folder of prepared texts, and the choice of kernels.
PASSED = ("MODBENCH_CACHE", "MODBENCH_KERNELS")
#: Seconds for which a worker of another machine waits for a lease: a process whose parent was killed
#: takes up to 30 s to end, and the lease of a machine that is gone expires after 60 s. A lease that is
#: held for longer is of a job that runs.
PATIENCE = 90.0
#: Jobs that are handed to a scheduler at a time: an array of Slurm has at most 1,001 by default, and a
#: scheduler stays quick. More follow once few are left.
AT_ONCE, FEW = 1000, 500


class Executor:
    """Runs the worker of each job on the file in its folder; folders name jobs. This base is of machines
    that share the folder."""

    here = False  #: True: its workers run on this machine, so that what they stored is seen at once
    inline = False  #: True: in the process of the command
    threads = 1  #: of each job
    trouble = ""  #: a sentence on what it can't do or tell at present; empty: all is well

    def room(self, alive: int) -> int:
        """The most jobs to submit now, where ``alive`` wait or run."""
        return AT_ONCE if alive <= FEW else 0

    def submit(self, jobs: Sequence[Job], tell: Tell) -> Sequence[Job]:
        """Hand over ``jobs``; return those that it took. Raises UserError: it refuses."""
        raise NotImplementedError

    def alive(self) -> set[Path]:
        """The folders of the jobs that wait or run."""
        raise NotImplementedError

    def end(self, folder: Path) -> None:
        """Kill the worker of a job that makes no progress."""

    def held(self, folder: Path) -> bool:
        """Return True if the worker has ended since another process holds the lease."""
        return False

    def death(self, job: Job) -> tuple[str, str]:
        """Status and error of a job whose worker ended without a word."""
        return "failed", "its task ended without a record"

    def log(self, folder: Path) -> Path | None:
        """Its own log of a job that has written none; None: it keeps none."""
        return None

    def stop(self, hurry: Callable[[], bool], tell: Tell) -> None:
        """End what would not outlive the command, and tell what does. ``hurry`` returns True once the
        user asks again."""


def refuse_few_gpus(request: Mapping[str, str], ranks: int) -> None:
    """Raise a `UserError` if ``request`` asks for GPUs, but for fewer than ``ranks``."""
    for name in ("gpus", "gpus-per-node", "gres", "num_gpus"):
        parts = request.get(name, "").split(",")
        of_gpus = [part for part in parts if name != "gres" or part.split(":")[0] == "gpu"]
        number = of_gpus[0].rpartition(":")[2] if of_gpus else ""  # such as gpu:h100:8
        number = "1" if number == "gpu" else number
        if number.isdigit() and 0 < int(number) < ranks:
            raise UserError(
                f"--request {name}={request[name]}: [train] parallel has {ranks} processes, one per "
                f"GPU; ask for {ranks}, or lower it"
            )


def whole(request: Mapping[str, str], name: str, default: int, least: int = 1) -> int:
    """The whole number that ``request`` has under ``name``. Raises UserError: it is none, or is below
    ``least``."""
    try:
        number = int(request.get(name, default))
    except ValueError:
        number = least - 1
    if number < least:
        raise UserError(
            f"--request {name}={request[name]}: a whole number of {least} or more is expected"
        )
    return number
