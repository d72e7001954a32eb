"""Slurm: one job array over the jobs that are left, by a script that anybody can read and submit. Its
tasks are this module: ``python -m modbench.sweep.slurm LIST INDEX``, where LIST has a job's folder in
each line.

A rendered script serves, and submitit would add little: it pickles Python functions and asks `sacct`,
which many clusters don't have, what became of them. Here a task is a command, its index maps to a frozen
list next to the script, and what became of it is a record in the shared folder. What is queued is asked
of `squeue`, where the array's name tells its list.
"""

import contextlib
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from statistics import median

from modbench.errors import UserError, several
from modbench.records.record import RunRecord
from modbench.records.store import read_records, record_files, write_files
from modbench.sweep import worker
from modbench.sweep.executor import PASSED, PATIENCE, Executor, Tell, whole
from modbench.sweep.job import LOG, Job, RunJob
from modbench.sweep.lease import Lease
from modbench.sweep.process import python_path

#: Command of a task, before its arguments. -P: the working directory holds no modules.
TASK = (sys.executable, "-P", "-m", "modbench.sweep.slurm")
LIST, SCRIPT = "jobs.txt", "array.sh"
#: Minutes of a task if no run has been recorded, whose rate could be used. A task that needs longer
#: stores a checkpoint and is queued again.
_UNKNOWN_MINUTES = 240
#: Minutes for the start of a process, the audit and measurements, which FLOPs of training don't tell.
_START_MINUTES = 30
_MARGIN = 2.0  #: nodes differ, and sizes differ in FLOP/s
#: Seconds before the end of its time at which a task stores its checkpoint, which takes up to 20.
_NOTICE_SECONDS = 120
_ASK_SECONDS = 10.0  #: between two questions to Slurm's controller, which answers all users
_SAMPLE = 200  #: files of records to take rates from


class Slurm(Executor):
    """Executor of Slurm for the jobs in ``folder`` (results/<suite>), ``workers`` of an array at a time
    (0: no limit). ``request``: long options of sbatch by name."""

    def __init__(self, folder: Path, request: Mapping[str, str], workers: int) -> None:
        self._folder = folder.resolve() / "slurm"
        self._request = request
        self._workers = workers
        self.threads = whole(request, "cpus-per-task", 1)
        self._alive: dict[Path, str] = {}  #: the number of each job's task; empty: not known yet
        self._asked: float | None = None

    def check(self) -> None:
        """Raises UserError: Slurm isn't there, or can't do what was requested."""
        if not shutil.which("sbatch"):
            raise UserError(
                "--engine slurm: sbatch is not found; run the command on a login node of the cluster, "
                "or use --engine local"
            )
        script = "\n".join(["#!/bin/sh", *self._options(_UNKNOWN_MINUTES), "true", ""])
        self._sbatch(["--test-only"], script)
        self.alive()
        if self.trouble:  # it would submit what is queued already
            raise UserError(f"--engine {self.trouble}; try again once it answers")

    def alive(self) -> set[Path]:
        if self._asked is None or time.monotonic() - self._asked > _ASK_SECONDS:
            words = ["squeue", "--me", "--noheader", "--array", "--format=%K %j %i"]
            queue = subprocess.run(words, capture_output=True, text=True)
            if queue.returncode == 0:
                self._alive, self.trouble = self._queued(queue.stdout), ""
            else:  # the controller may be away for a while
                said = " ".join(queue.stderr.split())[:200]
                self.trouble = f"slurm: squeue does not tell which tasks are queued ({said})"
            self._asked = time.monotonic()
        return {*self._alive}

    def submit(self, jobs: Sequence[Job], tell: Tell) -> Sequence[Job]:
        with Lease(self._folder).held():
            self._asked = None
            queued = self.alive()  # another command may have submitted some of them
            if self.trouble:
                raise UserError(self.trouble)
            free = [job for job in jobs if job.folder not in queued]
            if not free:
                tell(f"slurm: all of {several(len(jobs), 'task')} are queued by another command")
                return []
            name = secrets.token_hex(6)
            place = self._folder / name
            place.mkdir(parents=True)
            listed = "".join(f"{job.folder}\n" for job in free)
            script = self.script(free, name)
            write_files(place, {LIST: listed.encode(), SCRIPT: script.encode()})
            number = self._sbatch([], script)
        self._alive |= {job.folder: "" for job in free}
        tell(f"slurm: array {number} of {several(len(free), 'task')}; its script and logs: {place}")
        return free

    def end(self, folder: Path) -> None:
        subprocess.run(["scancel", self._alive.get(folder, "")], capture_output=True)

    def log(self, folder: Path) -> Path | None:
        logs = [
            listed.parent / f"{number}.txt"
            for listed in self._folder.glob(f"*/{LIST}")
            for number, line in enumerate(listed.read_text().splitlines())
            if line == str(folder)
        ]
        return max(
            (log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime, default=None
        )

    def stop(self, hurry: Callable[[], bool], tell: Tell) -> None:
        tell(
            f"slurm: {several(len(self._alive), 'task')} of this suite stay in the queue (squeue --me; "
            "scancel ends them); the same command watches them again"
        )

    def script(self, jobs: Sequence[Job], name: str = "NAME") -> str:
        """The script of an array of ``jobs``; ``name``: its folder in results/<suite>/slurm."""
        place = self._folder / name
        minutes = time_limit(jobs, recorded_rate(self._folder.parent))
        suite = jobs[0].suite if jobs else ""
        throttle = f"%{self._workers}" if self._workers else ""
        own = {
            "job-name": f"modbench-{suite}-{name}".replace(" ", "_"),
            "array": f"0-{max(0, len(jobs) - 1)}{throttle}",
            "output": str(place / "%a.txt"),
            "open-mode": "append",
        }
        variables = {name: os.environ[name] for name in PASSED if name in os.environ}
        variables["PYTHONPATH"] = python_path()
        lines = [
            "#!/bin/sh",
            *self._options(minutes),
            *(_line(option, value) for option, value in own.items()),
            "#SBATCH --requeue",
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            f'exec {shlex.join(TASK)} {shlex.quote(str(place / LIST))} "$SLURM_ARRAY_TASK_ID"',
        ]
        return "\n".join([*lines, ""])

    def _options(self, minutes: int) -> list[str]:
        """The lines of options that were requested, or that have a default."""
        default = {"time": str(minutes), "signal": f"B:TERM@{_NOTICE_SECONDS}"}
        return [_line(name, value) for name, value in {**default, **self._request}.items()]

    def _sbatch(self, words: Sequence[str], script: str) -> str:
        """The number of the array that ``script`` makes. Raises UserError: sbatch refuses it."""
        command = ["sbatch", "--parsable", *words]
        done = subprocess.run(command, input=script, capture_output=True, text=True)
        if done.returncode:
            said = [line.removeprefix("sbatch: error: ") for line in done.stderr.splitlines()]
            said = [line.strip() for line in said if line.strip() and not line.startswith("Try ")]
            asked = " ".join(f"{name}={value}" for name, value in self._request.items())
            of = f" with --request {asked}" if asked else ""
            raise UserError(f"--engine slurm: sbatch refuses{of}: {'; '.join(said)}")
        return done.stdout.strip().partition(";")[0]

    def _queued(self, queue: str) -> dict[Path, str]:
        """The jobs of this suite in ``queue``, lines of an index, the array's name and a task's number:
        their folders, with the number of each task."""
        tasks: dict[str, dict[int, str]] = {}
        for line in queue.splitlines():
            index, name, number = [*line.split(), "", ""][:3]
            name = name.rpartition("-")[2]
            if index.isdigit() and (self._folder / name / LIST).is_file():
                tasks.setdefault(name, {})[int(index)] = number
        folders = dict[Path, str]()
        for name, numbers in tasks.items():
            listed = (self._folder / name / LIST).read_text().splitlines()
            folders |= {Path(listed[index]): number for index, number in numbers.items()}
        return folders


def _line(option: str, value: str) -> str:
    return f"#SBATCH --{option}={shlex.quote(value)}" if value else f"#SBATCH --{option}"


def recorded_rate(folder: Path) -> float | None:
    """The median FLOP/s of training in a sample of the records in ``folder``; None without any."""
    rates = []
    for path in record_files(folder)[:_SAMPLE]:
        for record in read_records(path):
            if isinstance(record, RunRecord) and record.status == "ok":
                seconds = (record.seconds or {}).get("train")
                if seconds:
                    rates.append(record.ends[-1].flops / seconds)
    return median(rates) if rates else None


def time_limit(jobs: Sequence[Job], rate: float | None) -> int:
    """Minutes for the longest of ``jobs`` at ``rate`` FLOP/s; for all of an array, as Slurm has it."""
    if rate is None:
        return _UNKNOWN_MINUTES
    trained = (job.run for job in jobs if isinstance(job, RunJob) and job.train)
    longest = max((run.schedule.budget for run in trained), default=0)
    return _START_MINUTES + ceil(_MARGIN * longest / rate / 60)


def main(words: Sequence[str]) -> int:
    """Do the job of line INDEX of LIST. Returns what `modbench.sweep.worker.main` does, and 0 if another
    process does the job."""
    listed, index = words
    folder = Path(Path(listed).read_text().splitlines()[int(index)])
    code = worker.main([str(folder), str(PATIENCE)], log=folder / LOG)
    if code == worker.STOPPED:
        _queue_again()
    return 0 if code == worker.HELD else code


def _queue_again() -> None:
    """Ask Slurm to run this task again, if it was asked to stop near the end of its time. A task that is
    cancelled or preempted no longer runs for Slurm."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    if array is None or task is None:
        return
    name = f"{array}_{task}"
    ask = ["squeue", "--noheader", f"--jobs={name}", "--format=%T"]
    with contextlib.suppress(FileNotFoundError):  # a node without commands: left to the next command
        state = subprocess.run(ask, capture_output=True, text=True)
        if state.stdout.strip() == "RUNNING":
            subprocess.run(["scontrol", "requeue", name])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
