"""Slurm: one job array over the jobs that are left, by a script that anybody can read and submit.

A rendered script serves, and submitit would add little: it pickles Python functions and asks `sacct`,
which many clusters don't have, what became of them. Here a task is a command, its index maps to a frozen
list next to the script, and what became of it is a record in the shared folder. What is queued is asked
of `squeue`, where the array's name tells its list.
"""

import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from statistics import median

from modbench.errors import UserError, several
from modbench.records.record import RunRecord
from modbench.records.run import Run
from modbench.records.store import read_records, record_files, write_files
from modbench.sweep.claim import claimed
from modbench.sweep.job import Job
from modbench.sweep.launch.launcher import PASSED, TASK, python_path, whole

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


class Slurm:
    """Launcher of Slurm for the jobs in ``folder`` (results/<suite>), ``workers`` of an array at a time
    (0: no limit). ``request``: long options of sbatch by name."""

    def __init__(self, folder: Path, request: Mapping[str, str], workers: int) -> None:
        self._folder = folder.resolve() / "slurm"
        self._request = request
        self._workers = workers
        self.threads = whole(request, "cpus-per-task", 1)
        self.trouble = ""
        self._active: set[Path] = set()
        self._asked: float | None = None

    def check(self) -> None:
        if not shutil.which("sbatch"):
            raise UserError(
                "--engine slurm: sbatch is not found; run the command on a login node of the cluster, "
                "or use --engine local"
            )
        script = "\n".join(["#!/bin/sh", *self._options(_UNKNOWN_MINUTES), "true", ""])
        self._sbatch(["--test-only"], script)
        self.active()
        if self.trouble:  # it would submit what is queued already
            raise UserError(f"--engine {self.trouble}; try again once it answers")

    def active(self) -> set[Path]:
        if self._asked is None or time.monotonic() - self._asked > _ASK_SECONDS:
            words = ["squeue", "--me", "--noheader", "--array", "--format=%K %j"]
            queue = subprocess.run(words, capture_output=True, text=True)
            if queue.returncode == 0:
                self._active, self.trouble = self._queued(queue.stdout), ""
            else:  # the controller may be away for a while
                said = " ".join(queue.stderr.split())[:200]
                self.trouble = f"slurm: squeue does not tell which tasks are queued ({said})"
            self._asked = time.monotonic()
        return self._active

    def submit(self, jobs: Sequence[Job]) -> str:
        with claimed(self._folder, lambda: None):
            self._asked = None
            queued = self.active()  # another command may have submitted some of them
            if self.trouble:
                raise UserError(self.trouble)
            free = [job for job in jobs if job.claimed not in queued]
            if not free:
                return f"slurm: all of {several(len(jobs), 'task')} are queued by another command"
            name = secrets.token_hex(6)
            place = self._folder / name
            place.mkdir(parents=True)
            listed = "".join(f"{job.claimed}\n" for job in free)
            script = self.script(free, name)
            write_files(place, {LIST: listed.encode(), SCRIPT: script.encode()})
            number = self._sbatch([], script)
        self._active = queued | {job.claimed for job in free if job.claimed}
        return f"slurm: array {number} of {several(len(free), 'task')}; its script and logs: {place}"

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

    def stopped(self) -> str:
        return (
            f"slurm: {several(len(self._active), 'task')} of this suite stay in the queue (squeue --me; "
            "scancel ends them); the same command watches them again"
        )

    def script(self, jobs: Sequence[Job], name: str = "NAME") -> str:
        """The script of an array of ``jobs``; ``name``: its folder in results/<suite>/slurm."""
        place = self._folder / name
        minutes = time_limit(jobs, recorded_rate(self._folder.parent))
        suite = jobs[0].spec["suite"] if jobs else ""
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

    def _queued(self, queue: str) -> set[Path]:
        """The folders of the jobs of this suite in ``queue``: lines of an index and the array's name."""
        indices: dict[str, list[int]] = {}
        for line in queue.splitlines():
            index, _, name = line.strip().partition(" ")
            name = name.rpartition("-")[2]
            if index.isdigit() and (self._folder / name / LIST).is_file():
                indices.setdefault(name, []).append(int(index))
        folders = set()
        for name, numbers in indices.items():
            listed = (self._folder / name / LIST).read_text().splitlines()
            folders |= {Path(listed[number]) for number in numbers}
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
    longest = max(
        (planned_flops(Run.of(job.spec["run"])) for job in jobs if job.spec["train"]), default=0
    )
    return _START_MINUTES + ceil(_MARGIN * longest / rate / 60)


def planned_flops(run: Run) -> int:
    """Training FLOPs of ``run``, with the decays that branch off a trapezoid's trunk."""
    schedule = run.schedule
    decays = sum(budget - schedule.trunk(budget) for budget in schedule.budgets[:-1])
    return schedule.budgets[-1] + decays
