"""The loop of a command: hand over the jobs that are left, read new records, mark what died. It keeps no
state that a command needs which is started again: what is left is what is wanted minus what is recorded.
Several commands, on one machine or on several, may share a results folder."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from modbench.errors import UserError, several
from modbench.records.finished import Finished, Watch
from modbench.records.store import append_record
from modbench.sweep.executor import AT_ONCE, Executor
from modbench.sweep.job import Identity, Job, TimeJob, done_of, identity_of
from modbench.sweep.lease import Lease
from modbench.sweep.process import Event, Events, silence
from modbench.sweep.progress import Progress, summary_line
from modbench.sweep.worker import stop_signals

#: Seconds between two looks: at workers here, at what other commands do, at folders on a network.
_POLL_SECONDS, _WAIT_SECONDS, _LOOK_SECONDS = 0.2, 1.0, 2.0
#: Seconds for which a job of another machine that has ended may lack a record: folders on a network show
#: new files late.
_LATE_SECONDS = 30.0
#: Jobs that other commands work on which a look asks after, so that it doesn't touch every job's folder.
_ASKED = 16


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that ended with status ``failed`` or ``oom``. ``refused``: for a plugin's mistake."""

    title: str
    status: str
    error: str
    log: Path
    refused: bool


@dataclass(eq=False)
class _Followed:
    """A job that was handed over, by this command or (not ``own``) by an earlier one."""

    job: Job
    own: bool
    events: Events
    handed: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float | None = None  #: when it was seen to run
    gone: float | None = None  #: since when its executor no longer has it
    silent: str = ""  #: why it was ended


class Loop:
    """Runs jobs of ``folder`` (results/<suite>) on ``executor`` and reports to ``progress``."""

    def __init__(self, folder: Path, executor: Executor, progress: Progress) -> None:
        self._folder = folder
        self._executor = executor
        self._progress = progress
        self._todo: dict[Path, Job] = {}  #: by folder, in order
        self._followed: dict[Path, _Followed] = {}
        self._jobs: dict[Identity, Path] = {}  #: the folders of the records' jobs
        self._recorded: dict[Path, dict[Identity, Finished]] = defaultdict(dict)
        self._leases: dict[Path, Lease] = {}
        self._seconds: dict[str, float] = defaultdict(float)  #: by step
        self._failures: list[Failure] = []
        self._at_once = AT_ONCE
        self._told = ""

    def run(self, jobs: Sequence[Job]) -> list[Failure]:
        """Run ``jobs``. Those that another process works on are waited for; they are done once it has
        recorded them, and run here if it gives up. Returns the failures.

        Raises:
            KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP arrived. Finished jobs are recorded; the others
                of this machine have stored a checkpoint.
            UserError: the folder can't be written, a record line is corrupt, or the executor refuses.
        """
        began = time.monotonic()
        watch = Watch(self._folder)
        known = watch.new()
        done = done_of(known)
        for job in jobs:
            if done.issuperset(job.identities):  # since the jobs that are left were listed
                self._progress.elsewhere(job.title)
            else:
                self._todo[job.folder] = job
                self._jobs |= dict.fromkeys(job.identities, job.folder)
        self._note(record for record in known if record.status == "ok")
        stop: list[int] = []
        with stop_signals(stop.append):
            try:
                while (self._todo or self._followed) and not stop:
                    self._look(watch, stop)
            finally:
                if self._todo or self._followed:
                    self._executor.stop(lambda: len(stop) > 1, self._progress.note)
        if self._todo or self._followed:
            raise KeyboardInterrupt
        wall = time.monotonic() - began
        if self._executor.here:
            what = several(len(jobs), self._progress.unit)
            self._progress.note(summary_line(what, self._seconds, wall))
        return self._failures

    def _look(self, watch: Watch, stop: Sequence[int]) -> None:
        """One turn: see what became of jobs, hand over others, and wait."""
        began = time.monotonic()
        alive = self._executor.alive()
        self._tell(self._executor.trouble)
        if stop:  # the same signal may have ended workers that could not yet take it
            return
        # After the executor's answer: a job that it no longer has is recorded.
        changed = self._note(watch.new())
        for folder in [folder for folder in alive if folder in self._todo]:  # of an earlier command
            job = self._todo.pop(folder)
            self._followed[folder] = _Followed(job, False, Events(folder))
        for followed in [*self._followed.values()]:
            self._follow(followed, followed.job.folder in alive)
        for folder in changed & self._todo.keys():
            if self._outcome(job := self._todo[folder]):  # completed by another command
                del self._todo[folder]
                self._progress.elsewhere(job.title)
        if not stop:
            self._hand_over(alive)
        pause = _POLL_SECONDS if self._followed else _WAIT_SECONDS
        if not self._executor.here:
            pause = max(_LOOK_SECONDS, 5 * (time.monotonic() - began))
        until = time.monotonic() + pause
        while (left := until - time.monotonic()) > 0 and not stop and (self._todo or self._followed):
            time.sleep(min(left, _POLL_SECONDS))

    def _note(self, records: Iterable[Finished]) -> set[Path]:
        """Note which jobs ``records`` are of, and return their folders. What failed elsewhere is
        left."""
        folders = set()
        for record in records:
            folder = self._jobs.get(identity := identity_of(record))
            if folder and (record.status != "failed" or folder in self._followed):
                self._recorded[folder][identity] = record
                folders.add(folder)
        return folders

    def _outcome(self, job: Job) -> tuple[str, str] | None:
        """Status and error of a job that its records complete; None if they don't."""
        recorded = self._recorded.get(job.folder, {})
        for identity in job.identities:
            record = recorded.get(identity)
            if record is None:
                return None
            if record.status not in ("ok", None):
                return record.status, record.error or ""
        return "ok", ""

    def _tell(self, sentence: str) -> None:
        """Note ``sentence``, unless it was the last one."""
        if sentence and sentence != self._told:
            self._progress.note(sentence)
        self._told = sentence or self._told

    def _follow(self, followed: _Followed, is_alive: bool) -> None:
        """Show the events of a job; end it if it makes no progress; see what became of it."""
        job, events = followed.job, followed.events
        for event in events.new():
            self._hear(followed, event)
        outcome = self._outcome(job)
        if events.end and "lost" in events.end:  # an audit that had not enough memory
            outcome = tuple(events.end["lost"])
        # A failure is told with the worker's last word, which says whose mistake it is.
        known = not self._executor.here and (events.end or (outcome and outcome[0] != "failed"))
        if outcome and (not is_alive or known):
            self._settle(followed, *outcome)
        elif is_alive:
            followed.gone = None
            silent = followed.began is not None and time.monotonic() - events.changed > job.timeout
            if silent and not followed.silent:
                followed.silent = silence(job.timeout, events.phase)
                self._executor.end(job.folder)
        elif not followed.own:
            self._back(followed)
        else:
            self._ended(followed)

    def _hear(self, followed: _Followed, event: Event) -> None:
        self._began(followed)
        if event.get("phase") != "start":
            self._progress.event(followed.job.key, event)

    def _began(self, followed: _Followed) -> None:
        if followed.began is None:
            followed.began = time.monotonic()
            followed.events.changed = time.monotonic()
            self._progress.started(followed.job.key, followed.job.title)

    def _back(self, followed: _Followed, *, first: bool = False) -> None:
        """Hand the job over once more, when it is free."""
        job = followed.job
        del self._followed[job.folder]
        if followed.began is not None:
            self._progress.stopped(job.key)
        again = {job.folder: job}
        self._todo = again | self._todo if first else self._todo | again

    def _ended(self, followed: _Followed) -> None:
        """A job has ended without the records that it owes: another process works on it, or its worker
        has died, of which a record is stored."""
        job, end = followed.job, followed.events.end or {}
        if (earlier := end.get("earlier")) and isinstance(job, TimeJob):
            followed.job = replace(job, earlier=earlier)
            self._back(followed, first=True)
            return
        if self._executor.held(job.folder):
            self._back(followed)
            return
        lease = self._leases.setdefault(job.folder, Lease(job.folder))
        if not lease.take():
            followed.gone = None
            if self._executor.here:  # another process took this one for dead
                self._back(followed)
            return
        try:
            if followed.gone is None:  # another look, now that no process can store its record
                followed.gone = time.monotonic()
                return
            if not self._executor.here and time.monotonic() - followed.gone <= _LATE_SECONDS:
                return
            status, error = ("failed", end["error"]) if end.get("code") else self._executor.death(job)
            if followed.silent:
                status, error = "failed", followed.silent
            recorded = self._recorded[job.folder]
            lacking = next(identity for identity in job.identities if identity not in recorded)
            append_record(self._folder, job.failure(lacking, status, error, followed.handed))
            self._settle(followed, status, error)
        finally:
            lease.release()

    def _settle(self, followed: _Followed, status: str, error: str) -> None:
        """End a job with ``status`` and ``error``."""
        job = followed.job
        del self._followed[job.folder]
        self._leases.pop(job.folder, None)
        began = followed.began
        self._began(followed)
        wall = 0.0 if began is None else time.monotonic() - began
        by_step = (followed.events.end or {}).get("seconds") or {}
        for name, seconds in by_step.items():
            self._seconds[name] += seconds
        self._seconds["other"] += max(0.0, wall - sum(by_step.values()))
        self._progress.ended(job.key, status, wall, error)
        if status in ("failed", "oom"):
            log = job.log if job.log.exists() else self._executor.log(job.folder) or job.log
            refused = (followed.events.end or {}).get("code") == 2
            self._failures.append(
                Failure(title=job.title, status=status, error=error, log=log, refused=refused)
            )

    def _hand_over(self, alive: set[Path]) -> None:
        """Submit jobs that no process works on, as many as the executor takes."""
        room = min(self._executor.room(len(alive)), self._at_once)
        chosen: list[Job] = []
        held: list[Job] = []
        for folder, job in self._todo.items():
            if len(chosen) >= room or len(held) == _ASKED:
                break
            if folder in alive:
                continue
            if self._leases.setdefault(folder, Lease(folder)).free():
                chosen.append(job)
                del self._leases[folder]
            else:
                self._progress.waits(job.key, job.title)
                held.append(job)
        for job in held:  # others are asked after next time
            self._todo[job.folder] = self._todo.pop(job.folder)
        if not chosen:
            return
        for job in chosen:
            job.write()
            Events(job.folder).clear()
        began = time.monotonic()
        try:
            taken = self._executor.submit(chosen, self._progress.note)
        except UserError as refusal:  # such as a limit on an array, or on the jobs of a user
            if alive or self._executor.trouble:
                self._tell(f"{refusal}; tried again later")
            elif len(chosen) == 1:
                raise
            else:
                self._at_once = len(chosen) // 2
            return
        for job in taken:
            del self._todo[job.folder]
            followed = self._followed[job.folder] = _Followed(job, True, Events(job.folder))
            if self._executor.here:
                self._began(followed)
                followed.began = began
