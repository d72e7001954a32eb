"""Runs jobs, one worker process each, on this machine. It keeps no state: what is left to do is the jobs
minus the records, and no job runs twice at once, since each is claimed first (`modbench.sweep.claim`).
Several engines, on one machine or on several, may share a results folder."""

import math
import os
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from modbench.errors import UserError, several
from modbench.records.finished import Finished, Watch
from modbench.records.store import append_record
from modbench.sweep.claim import Claim, Claims, LostError
from modbench.sweep.job import Identity, Job, done_of, identity_of
from modbench.sweep.jobs import crash_record
from modbench.sweep.progress import Progress, summary_line
from modbench.sweep.worker import Worker, stop_signals


class Devices:
    """The devices ``names``, as `CUDA_VISIBLE_DEVICES` has them. A device is held by one job at a time,
    of any command on this machine: by a lock in the machine's folder for temporary files."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        folder = Path(tempfile.gettempdir())
        self._locks = {
            name: FileLock(folder / f"modbench-device-{name}.lock", mode=0o666) for name in names
        }

    def __len__(self) -> int:
        return len(self._locks)

    def take(self, count: int = 1) -> tuple[str, ...] | None:
        """``count`` free devices, or none of a machine that has none; None if too few are free."""
        if not self._locks:
            return ()
        taken: list[str] = []
        for name, lock in self._locks.items():
            if len(taken) == count:
                break
            if not lock.is_locked:
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                except OSError as error:
                    raise UserError(
                        f"{lock.lock_file} can't be opened ({error.strerror}); remove it"
                    ) from error
                taken.append(name)
        if len(taken) == count:
            return tuple(taken)
        self.give(taken)
        return None

    def give(self, names: Iterable[str]) -> None:
        """Give back devices that were taken."""
        for name in names:
            self._locks[name].release()

    @classmethod
    def here(cls) -> "Devices":
        """The GPUs that this process may use; none on a machine without."""
        import torch

        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(count)]
        return cls(tuple(names[:count]))


def refuse_missing_devices(ranks: int) -> None:
    """Raise a `UserError` if this machine has GPUs, but fewer than ``ranks``."""
    import torch

    devices = torch.cuda.device_count()
    if 0 < devices < ranks:
        raise UserError(
            f"[train] parallel has {ranks} processes, one per GPU, and a run sees {devices} here; lower "
            "it, or give the run more GPUs"
        )


_POLL_SECONDS = 0.2  #: too short a delay to notice
_WAIT_SECONDS = 1.0  #: between two looks at what other processes do
_STOP_SECONDS = 20.0  #: time for a worker to store a small checkpoint when asked to stop
_STORED_BYTES = 1e8  #: bytes of a large one stored in a second, with its copy from a GPU and its hash
_CHECKPOINTS = "runs/*/checkpoint.pt"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Running:
    worker: Worker
    claim: Claim | None
    devices: tuple[str, ...]
    before: int  #: number of records that had been seen when it began


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
    after which a worker is ended. ``patience``: seconds for which jobs that other processes work on are
    waited for. ``since``: time of the oldest files of records that are read."""

    folder: Path  #: results/<suite>
    progress: Progress
    workers: int = 1
    timeout: float = 1800.0
    patience: float = math.inf
    since: float = 0.0
    devices: Devices = field(default_factory=Devices)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  #: by step
    claims: Claims = field(default_factory=Claims)
    _records: list[Finished] = field(default_factory=list, init=False)  #: in the order they were seen
    _done: set[Identity] = field(default_factory=set, init=False)
    _done_before: set[Identity] = field(default_factory=set, init=False)  #: when the engine began

    def run(self, jobs: Sequence[Job]) -> list[Failure]:
        """Run ``jobs``. Those that another process works on are waited for; they are done once it has
        recorded them, and run here if it gives up. Returns the failures. Jobs that are left when
        ``patience`` ends are left to the other processes.

        Raises:
            KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP arrived. Finished jobs are recorded, the others
                stored a checkpoint.
            UserError: the folder can't be written, or a record line is corrupt.
        """
        todo = deque(jobs)
        begun = time.monotonic()
        watch = Watch(self.folder, self.since)
        self._see(watch)
        self._done_before = {*self._done}
        failures: list[Failure] = []
        running: dict[Job, _Running] = {}
        stop: list[int] = []
        with stop_signals(stop.append):
            try:
                while (todo or running) and not stop:
                    self._see(watch)
                    self._start_some(todo, running, watch)
                    if todo and not running and time.monotonic() - begun > self.patience:
                        break
                    time.sleep(_POLL_SECONDS if running else _WAIT_SECONDS)
                    if stop:  # the same signal may have ended workers that could not yet take it
                        break
                    for job in [job for job, at in running.items() if at.worker.over()]:
                        at = running.pop(job)
                        if rest := self._rest(job, at):
                            todo.appendleft(rest)
                        else:
                            failures += self._settle(job, at, watch)
            finally:
                self._stop([at.worker for at in running.values()], stop)
                for at in running.values():
                    self._give_up(at)
        if stop and (todo or running):
            raise KeyboardInterrupt
        wall = time.monotonic() - begun
        self.progress.note(summary_line(several(len(jobs), self.progress.unit), self.seconds, wall))
        return failures

    def _see(self, watch: Watch) -> None:
        """Read the records that were added."""
        new = watch.new()
        self._records += new
        self._done |= done_of(new)

    def _is_done(self, job: Job) -> bool:
        """Return True if another process has recorded ``job``, or a part of it, since this engine began.
        A run whose weights are gone is trained again although it has a record."""
        parts = {*job.identities}
        return parts <= self._done or bool(parts & (self._done - self._done_before))

    def _start_some(self, todo: deque[Job], running: dict[Job, _Running], watch: Watch) -> None:
        """Start jobs of ``todo`` while there is room, each that no other process works on. A job that
        another process has recorded is taken off."""
        for _ in range(len(todo)):
            if len(running) >= self.workers:
                return
            job = todo.popleft()
            if self._is_done(job):
                self.progress.elsewhere(job.title)
            elif (started := self._start(job, watch)) is not None:
                running[job] = started
            else:
                todo.append(job)

    def _start(self, job: Job, watch: Watch) -> _Running | None:
        """Claim ``job`` and start its worker; None if another process works on it, or no device is
        free."""
        claim = None
        devices = self.devices.take(job.ranks)
        if devices is None:
            return None
        if job.claimed and (claim := self.claims.take(job.claimed)) is None:
            self.devices.give(devices)
            self.progress.waits(job.key, job.title)
            return None
        spec = dict(job.spec)
        if claim:
            # Another process may have recorded it, and given up its claim, since the records were read.
            self._see(watch)
            if self._is_done(job):
                claim.release()
                self.devices.give(devices)
                return None
            spec["claim"] = {"path": str(claim.path), "token": claim.token}
        if devices:
            spec["device"] = ",".join(devices)
        self.progress.started(job.key, job.title)
        hear = partial(self.progress.event, job.key)
        worker = Worker(spec, log=job.log, hear=hear, timeout=self.timeout)
        return _Running(worker=worker, claim=claim, devices=devices, before=len(self._records))

    def _give_up(self, at: _Running) -> None:
        if at.claim:
            at.claim.release()
        self.devices.give(at.devices)

    def _rest(self, job: Job, at: _Running) -> Job | None:
        """The job of another process that goes on where the worker could not; None if it has ended with
        a result."""
        earlier = (at.worker.result or {}).get("earlier")
        if earlier is None:
            return None
        at.worker.close()
        self._give_up(at)
        return replace(job, spec=job.spec | {"earlier": earlier})

    def _settle(self, job: Job, at: _Running, watch: Watch) -> list[Failure]:
        """Make sure that a job whose worker has ended has a record, and report its status."""
        worker = at.worker
        worker.close()
        self._see(watch)
        wall = (datetime.now(UTC) - worker.started).total_seconds()
        status, error, refused = self._outcome(job, at)
        self._give_up(at)
        by_step = (worker.result or {}).get("seconds") or {}
        for name, seconds in by_step.items():
            self.seconds[name] += seconds
        self.seconds["other"] += max(0.0, wall - sum(by_step.values()))
        self.progress.ended(job.key, status, wall, error)
        if status not in ("failed", "oom"):
            return []
        return [Failure(title=job.title, status=status, error=error, log=job.log, refused=refused)]

    def _outcome(self, job: Job, at: _Running) -> tuple[str, str, bool]:
        """Status and error of a worker that has ended, and whether a plugin's mistake ended it."""
        worker = at.worker
        if worker.result is not None:
            return worker.result["status"], worker.result["error"] or "", False
        added = {identity_of(line): line for line in self._records[at.before :]}
        stored = {identity: added[identity] for identity in job.identities if identity in added}
        lacking = [identity for identity in job.identities if identity not in stored]
        lost = [record.status for record in stored.values() if record.status not in ("ok", None)]
        if lost or not lacking:  # killed between record and result
            return lost[0] if lost and lost[0] else "ok", "", False
        try:
            if at.claim:
                at.claim.check()
        except LostError:
            return "taken over", "by another process, which took this one for dead", False
        status = "oom" if worker.out_of_memory() else "failed"
        error = worker.error()
        append_record(self.folder, crash_record(job.spec, lacking[0], status, error, worker.started))
        return status, error, worker.code == 2

    def _stop(self, running: Sequence[Worker], stop: Sequence[int]) -> None:
        """Ask the running workers to store their checkpoints and end; kill those that don't in time, or
        all of them at a second signal."""
        if not running:
            return
        largest = max((path.stat().st_size for path in self.folder.glob(_CHECKPOINTS)), default=0)
        patience = _STOP_SECONDS + largest / _STORED_BYTES
        self.progress.note(f"stopping: waiting up to {patience:.0f} s for checkpoints")
        for worker in running:
            worker.ask_to_stop()
        deadline = time.monotonic() + patience
        while not all(worker.ended() for worker in running):
            if time.monotonic() > deadline or len(stop) > 1:
                break
            time.sleep(_POLL_SECONDS)
        for worker in running:
            worker.close()
