"""Hands the jobs that are left to an engine of several machines, and watches the shared folder until all
are recorded. It keeps no state: a command that is started again does the same for what is still left."""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modbench.errors import UserError
from modbench.records.finished import Finished, Watch
from modbench.sweep.claim import Claims
from modbench.sweep.engine import Failure
from modbench.sweep.job import Identity, Job, JobFile, done_of, identity_of
from modbench.sweep.launch.launcher import Launcher
from modbench.sweep.progress import Progress
from modbench.sweep.task import LATEST
from modbench.sweep.worker import stop_signals

#: Jobs that are handed over at a time: an array of Slurm has at most 1,001 by default, and a scheduler
#: stays quick. More follow once few are left.
AT_ONCE = 1000
_FEW = 500
_LOOK_SECONDS = 2.0  #: between two looks at the folder, which may be on a network
#: Seconds for which a job that its engine no longer has may lack a record: folders on a network show new
#: files late.
_LATE_SECONDS = 30.0
_POLL_SECONDS = 0.2  #: too short a delay of Ctrl-C to notice


@dataclass(kw_only=True)
class Watched:
    """Runs jobs on ``launcher`` and reports to ``progress``. ``timeout``: seconds without progress after
    which a worker is ended."""

    folder: Path  #: results/<suite>
    launcher: Launcher
    progress: Progress
    timeout: float
    claims: Claims = field(default_factory=Claims)
    _todo: dict[Path, Job] = field(default_factory=dict, init=False)  #: by folder
    _folders: dict[Identity, Path] = field(default_factory=dict, init=False)  #: of the records' jobs
    _recorded: dict[Path, dict[Identity, Finished]] = field(default_factory=dict, init=False)
    _submitted: set[Path] = field(default_factory=set, init=False)
    _free_since: dict[Path, float] = field(default_factory=dict, init=False)
    _began: dict[Path, float] = field(default_factory=dict, init=False)  #: when a job was seen to run
    _shown: dict[Path, dict[str, Any]] = field(default_factory=dict, init=False)  #: its latest events
    _told: str = field(default="", init=False)  #: what was last noted of the engine
    _at_once: int = field(default_factory=lambda: AT_ONCE, init=False)

    def run(self, jobs: Sequence[Job]) -> list[Failure]:
        """Run ``jobs``; return the failures. Those that the engine has from an earlier command, or that
        another process works on, are waited for.

        Raises:
            KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP arrived.
            UserError: the folder can't be written, a record line is corrupt, or the engine refuses.
        """
        self._todo = {job.claimed: job for job in jobs if job.claimed}
        self._folders = {
            identity: folder for folder, job in self._todo.items() for identity in job.identities
        }
        watch = Watch(self.folder)
        known = watch.new()
        done = done_of(known)
        for folder, job in [*self._todo.items()]:
            if done.issuperset(job.identities):  # since the jobs that are left were listed
                self.progress.elsewhere(job.title)
                del self._todo[folder]
        for record in known:  # a task of an earlier command may have stored a part since then
            folder_of_it = self._folders.get(identity_of(record))
            if folder_of_it and record.status == "ok":
                self._recorded.setdefault(folder_of_it, {})[identity_of(record)] = record
        failures: list[Failure] = []
        stop: list[int] = []
        with stop_signals(stop.append):
            while self._todo and not stop:
                began = time.monotonic()
                active = self.launcher.active()
                self._tell(self.launcher.trouble)
                # After the engine's answer: a job that it no longer has is recorded.
                failures += self._settle(watch.new())
                self._show(active)
                self._hand_over(active)
                failures += self._lost(active)
                until = time.monotonic() + max(_LOOK_SECONDS, 5 * (time.monotonic() - began))
                while time.monotonic() < until and self._todo and not stop:
                    time.sleep(_POLL_SECONDS)
        if stop and self._todo:
            self.progress.note(self.launcher.stopped())
            raise KeyboardInterrupt
        return failures

    def _tell(self, sentence: str) -> None:
        """Note ``sentence``, unless it was the last one."""
        if sentence and sentence != self._told:
            self.progress.note(sentence)
        self._told = sentence or self._told

    def _settle(self, records: Iterable[Finished]) -> list[Failure]:
        """End the jobs that ``records``, which are new, complete."""
        failures = []
        for record in records:
            identity = identity_of(record)
            folder = self._folders.get(identity)
            job = self._todo.get(folder) if folder else None
            if folder is None or job is None:
                continue
            recorded = self._recorded.setdefault(folder, {})
            recorded[identity] = record
            if record.status != "ok" or recorded.keys() >= {*job.identities}:
                status = record.status or "ok"
                failures += self._end(folder, status, record.error or "")
        return failures

    def _end(self, folder: Path, status: str, error: str) -> list[Failure]:
        job = self._todo.pop(folder)
        if folder not in self._began:
            self.progress.started(job.key, job.title)
        seconds = time.monotonic() - self._began.get(folder, time.monotonic())
        self.progress.ended(job.key, status, seconds, error)
        if status not in ("failed", "oom"):
            return []
        log = job.log if job.log.exists() else self.launcher.log(folder) or job.log
        return [Failure(title=job.title, status=status, error=error, log=log, refused=False)]

    def _show(self, active: set[Path]) -> None:
        """Show the latest events of the jobs that run."""
        for folder in self._todo.keys() & active:
            job = self._todo[folder]
            latest: dict[str, Any] = {}
            with contextlib.suppress(OSError, ValueError):  # it waits, or has ended
                latest = json.loads((folder / LATEST).read_bytes())
            if latest and folder not in self._began:
                self._began[folder] = time.monotonic()
                self.progress.started(job.key, job.title)
            shown = self._shown.setdefault(folder, {})
            for kind, event in latest.items():
                if shown.get(kind) != event:
                    shown[kind] = event
                    self.progress.event(job.key, event)

    def _hand_over(self, active: set[Path]) -> None:
        """Submit jobs that neither the engine nor a process has, if the engine has few."""
        if len(active) > _FEW:
            return
        chosen: list[Job] = []
        for folder, job in self._todo.items():
            if len(chosen) == self._at_once:
                break
            if folder in active or folder in self._submitted:
                continue
            if self.claims.held(folder):
                self.progress.waits(job.key, job.title)
            else:
                chosen.append(job)
        if not chosen:
            return
        for job in chosen:
            JobFile(job=job, timeout=self.timeout, directory=os.getcwd()).write()
        while True:
            try:
                self.progress.note(self.launcher.submit(chosen))
                break
            except UserError as refusal:  # such as a limit on an array, or on the jobs of a user
                if active or self.launcher.trouble:
                    self._tell(f"{refusal}; tried again later")
                    return
                if len(chosen) == 1:
                    raise
                chosen = chosen[: len(chosen) // 2]
                self._at_once = len(chosen)
        self._submitted |= {job.claimed for job in chosen if job.claimed}

    def _lost(self, active: set[Path]) -> list[Failure]:
        """End the submitted jobs that neither the engine nor a process has, and that have no record."""
        failures = []
        for folder in self._submitted & self._todo.keys():
            if folder in active or self.claims.held(folder):
                self._free_since.pop(folder, None)
            elif (
                time.monotonic() - self._free_since.setdefault(folder, time.monotonic()) > _LATE_SECONDS
            ):
                failures += self._end(folder, "failed", "its task ended without a record")
        return failures
