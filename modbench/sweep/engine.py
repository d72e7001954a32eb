"""Runs jobs, one worker process each, on this machine. It keeps no state: what is left to do is the jobs
minus the records."""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from modbench.errors import several
from modbench.records.record import AnyRecord
from modbench.records.store import Finished, append_record, finished
from modbench.sweep.progress import Progress, summary_line
from modbench.sweep.worker import Worker, stop_signals

_POLL_SECONDS = 0.2  #: too short a delay to notice
_STOP_SECONDS = 20.0  #: time for a worker to store its checkpoint when asked to stop

#: Kind of record and key; of a timing its session, what it measures and its repetition, too.
Identity = tuple[str, str, str | None, str | None, int | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One worker process: its specification, and how its end is recorded if the worker can't."""

    identities: tuple[Identity, ...]  #: of the records that it makes, in order; see `identity_of`
    title: str
    spec: dict[str, Any]
    log: Path
    #: (identity, status, error, start) -> the first record that a worker did not write
    crash_record: Callable[[Identity, str, str, datetime], AnyRecord] = field(repr=False)

    @property
    def key(self) -> str:
        """Names it among the jobs that run."""
        return str(self.identities[0])


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that ended with status ``failed`` or ``oom``. ``refused``: for a plugin's mistake."""

    title: str
    status: str
    error: str
    log: Path
    refused: bool


@dataclass(kw_only=True)
class Engine:
    """Runs ``workers`` jobs at a time and reports to ``progress``. ``timeout``: seconds without progress
    after which a worker is ended."""

    folder: Path  #: results/<suite>
    progress: Progress
    workers: int = 1
    timeout: float = 1800.0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  #: by step
    #: records when the run began
    _before: Counter[Finished] = field(default_factory=Counter, init=False)

    def run(self, jobs: Sequence[Job]) -> list[Failure]:
        """Run ``jobs``; the caller holds the suite's lock. Returns the failures.

        Raises:
            KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP arrived. Finished jobs are recorded, the others
                stored a checkpoint.
            UserError: the folder can't be written, or a record line is corrupt.
        """
        todo = deque(jobs)
        begun = time.monotonic()
        self._before = Counter(finished(self.folder))
        failures: list[Failure] = []
        running: dict[Job, Worker] = {}
        stop: list[int] = []
        with stop_signals(stop.append):
            try:
                while (todo or running) and not stop:
                    while todo and len(running) < self.workers:
                        job = todo.popleft()
                        running[job] = self._start(job)
                    time.sleep(_POLL_SECONDS)
                    for job in [job for job, worker in running.items() if worker.over()]:
                        failures += self._settle(job, running.pop(job))
            finally:
                self._stop(list(running.values()), stop)
        if stop and (todo or running):
            raise KeyboardInterrupt
        wall = time.monotonic() - begun
        self.progress.note(summary_line(several(len(jobs), self.progress.unit), self.seconds, wall))
        return failures

    def _stored(self, identities: Sequence[Identity]) -> dict[Identity, Finished]:
        """The records of ``identities`` that this run has stored."""
        added = Counter(finished(self.folder)) - self._before
        return {identity_of(line): line for line in added if identity_of(line) in identities}

    def _start(self, job: Job) -> Worker:
        self.progress.started(job.key, job.title)
        hear = partial(self.progress.event, job.key)
        return Worker(job.spec, log=job.log, hear=hear, timeout=self.timeout)

    def _settle(self, job: Job, worker: Worker) -> list[Failure]:
        """Make sure that a job whose worker has ended has a record, and report its status."""
        worker.close()
        wall = (datetime.now(UTC) - worker.started).total_seconds()
        status, error, refused = self._outcome(job, worker)
        by_step = (worker.result or {}).get("seconds") or {}
        for name, seconds in by_step.items():
            self.seconds[name] += seconds
        self.seconds["other"] += max(0.0, wall - sum(by_step.values()))
        self.progress.ended(job.key, status, wall, error)
        if status not in ("failed", "oom"):
            return []
        return [Failure(title=job.title, status=status, error=error, log=job.log, refused=refused)]

    def _outcome(self, job: Job, worker: Worker) -> tuple[str, str, bool]:
        """Status and error of a worker that has ended, and whether a plugin's mistake ended it."""
        if worker.result is not None:
            return worker.result["status"], worker.result["error"] or "", False
        stored = self._stored(job.identities)
        lacking = [identity for identity in job.identities if identity not in stored]
        lost = [record.status for record in stored.values() if record.status not in ("ok", None)]
        if lost or not lacking:  # killed between record and result
            return lost[0] if lost and lost[0] else "ok", "", False
        status = "oom" if worker.out_of_memory() else "failed"
        error = worker.error()
        append_record(self.folder, job.crash_record(lacking[0], status, error, worker.started))
        return status, error, worker.code == 2

    def _stop(self, running: Sequence[Worker], stop: Sequence[int]) -> None:
        """Ask the running workers to store their checkpoints and end; kill those that don't in time, or
        all of them at a second signal."""
        if not running:
            return
        self.progress.note(f"stopping: waiting up to {_STOP_SECONDS:.0f} s for checkpoints")
        for worker in running:
            worker.ask_to_stop()
        deadline = time.monotonic() + _STOP_SECONDS
        while not all(worker.ended() for worker in running):
            if time.monotonic() > deadline or len(stop) > 1:
                break
            time.sleep(_POLL_SECONDS)
        for worker in running:
            worker.close()


def identity_of(line: Finished) -> Identity:
    """The identity of the job whose record ``line`` is."""
    return line.kind, line.key, line.session, line.measures, line.repetition
