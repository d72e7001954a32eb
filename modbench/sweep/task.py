"""A task of Slurm or Ray: runs one job from the file in its folder, if it is left, in a process that
does for it what the command `modbench run` does for jobs on its own machine.

``python -m modbench.sweep.task LIST INDEX``: LIST has the folder of a job in each line.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from modbench.errors import UserError
from modbench.records.finished import Watch
from modbench.sweep.engine import Engine
from modbench.sweep.job import FILE, JobFile, done_of
from modbench.sweep.progress import Progress

LATEST = "progress.json"  #: in the folder of a job that runs: its latest event of each kind
#: Seconds to wait for a claim: a process whose parent was killed takes up to 30 s to end, and the claim
#: of a machine that is gone expires after 60 s. A claim that is held for longer is of a job that runs.
PATIENCE = 90.0
#: Records that are older than the job's file, by more than what clocks of machines differ by, were read
#: by the command that wrote it. A task does not read them again: there may be 100,000.
_CLOCKS = 3600.0
_WRITE_SECONDS = 1.0  #: between two writes of `LATEST`, which other machines read every few seconds


class _Written(Progress):
    """Progress that is also written to `LATEST` in ``folder``."""

    def __init__(self, console: Console, folder: Path) -> None:
        super().__init__(console)
        self._file = folder / LATEST
        self._latest: dict[str, Mapping[str, Any]] = {}
        self._written = 0.0

    def event(self, key: str, event: Mapping[str, Any]) -> None:
        super().event(key, event)
        self._latest[event["event"]] = event
        if time.monotonic() - self._written > _WRITE_SECONDS:
            self._written = time.monotonic()
            part = self._file.with_suffix(".part")
            with contextlib.suppress(OSError):  # a full disk: the job may have room for its record
                part.write_text(json.dumps(self._latest))
                part.replace(self._file)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)


def run_task(folder: Path, patience: float = PATIENCE) -> bool:
    """Run what is left of the job in ``folder``, unless another process holds its claim for longer than
    ``patience`` seconds; return False if it failed.

    Raises:
        KeyboardInterrupt: SIGTERM or SIGINT arrived; the job has stored a checkpoint.
        UserError: the folder can't be written, or a record line is corrupt.
    """
    console = Console(stderr=True)
    file = JobFile.read(folder)
    with contextlib.suppress(OSError):  # a machine without that folder: paths may be absolute
        os.chdir(file.directory)
    results = Path(file.job.spec["results"])
    since = (folder / FILE).stat().st_mtime - _CLOCKS
    job = file.job.left(done_of(Watch(results, since).new()))
    progress = _Written(console, folder)
    progress.begin(file.job.spec["suite"], total=1, done=0 if job else 1)
    if job is None:
        return True
    engine = Engine(
        folder=results, progress=progress, timeout=file.timeout, patience=patience, since=since
    )
    try:
        return not any(failure.status == "failed" for failure in engine.run([job]))
    finally:
        progress.remove()


def main(words: list[str]) -> int:
    """Returns 0 if the job is recorded, or another process runs it; 1 if it failed, 2 for a user's
    mistake, 130 if it was stopped."""
    listed, index = words
    folder = Path(listed).read_text().splitlines()[int(index)]
    try:
        return 0 if run_task(Path(folder)) else 1
    except UserError as error:
        print(f"modbench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        _queue_again()
        return 130


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
