"""`modbench time`: wall time and memory of every scheme of a suite, untrained."""

import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from modbench.errors import UserError
from modbench.measure.machine_lock import MachineLock
from modbench.report.page import write_report
from modbench.report.record import TimingRecord
from modbench.report.store import ShardWriter, read_suite
from modbench.report.timing import (
    machine_in_words,
    refuse_other_environments,
    settings_of,
)
from modbench.sweep.cells import RefusedError, with_plugins
from modbench.sweep.lock import suite_lock
from modbench.sweep.progress import show_progress
from modbench.sweep.stop_signals import stop_signals
from modbench.sweep.suite import load_suite
from modbench.sweep.terminal import say, show_leaderboard
from modbench.sweep.timing_jobs import Job, timing_cells, timing_jobs, worker_spec
from modbench.sweep.timing_process import DiedError, run_worker
from modbench.train.out_of_memory import out_of_memory_kills

_DONE = ("ok", "oom")
_CODE = ("version", "commit", "dirty")
WORKER = (sys.executable, "-m", "modbench.measure.worker")


def time_suite(
    name: str,
    *,
    results: Path,
    plugins: Sequence[Path] = (),
    only: Sequence[str] = (),
    repetitions: int | None = None,
    again: bool = False,
    worker: Sequence[str] = WORKER,
) -> int:
    """Finish the last run, if machine, code and schemes are unchanged, or begin a new one; then write
    the report into ``results``/<suite>.

    Returns the exit code: 0, 1 if a process failed, or 2 if a plugin has a mistake and other rows are
    timed. Running out of memory is a result, not a failure.

    Raises:
        UserError: an error in the suite, the plugins of all rows or the folder, before anything has run;
            or the report can't be written, see `modbench.report.page.write_report`.
    """
    if repetitions is not None and repetitions < 1:
        raise UserError(f"--repetitions is {repetitions}; it must be 1 or more")
    from modbench.measure.system_load import thread_count

    err = Console(stderr=True)
    mistakes: list[RefusedError] = []
    suite = with_plugins(load_suite(name), plugins, mistakes)
    cells = timing_cells(suite, only, mistakes)
    if repetitions is None:
        repetitions = suite.time.repetitions
    else:
        replace(suite.time, repetitions=repetitions)  # raises UserError for too few samples
    jobs = timing_jobs(cells, repetitions)
    for mistake in mistakes:
        say(err, f"{mistake}; the other rows are timed")
    folder = results / suite.header.name
    with (
        suite_lock(folder / "timings", "time"),
        stop_signals(_stop),
        closing(MachineLock()) as lock,
    ):
        bench = _Bench(
            folder=folder,
            suite={"name": suite.header.name, "version": suite.header.version},
            threads=suite.time.threads or thread_count(),
            worker=worker,
            repetitions=repetitions,
        )
        failed = bench.run(jobs, err, lock, again=again)
        written = write_report(folder, say=partial(say, err))
    show_leaderboard((folder / "timings.md").read_text(encoding="utf-8"))
    for path in written:
        print(path)
    said = [f"{_label(one)} {one.status}: {one.error}; its log: {log}" for one, log in failed]
    for text in dict.fromkeys(said):  # repetitions fail with the same error
        say(err, text)
    broken = sum(timing.status == "failed" for timing, _ in failed)
    if broken:
        say(err, f"{broken} of {len(jobs)} processes failed; run the same command again to try them")
    return 2 if mistakes else 1 if broken else 0


def _stop(number: int) -> None:
    """Stop as Ctrl-C does: the measuring process is ended, and no empty shard is left."""
    raise KeyboardInterrupt


def _label(timing: TimingRecord) -> str:
    router = timing.cell["router"]
    return f"{timing.measurement} of {'the machine' if router is None else router['label']}"


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """Runs measuring processes one at a time, each alone on this machine."""

    folder: Path
    suite: dict[str, Any]
    threads: int
    worker: Sequence[str]
    repetitions: int

    def run(
        self, jobs: Sequence[Job], console: Console, lock: MachineLock, *, again: bool
    ) -> list[tuple[TimingRecord, Path]]:
        """Run the jobs that are left; return those whose status is not ok, each with its log."""
        from modbench.measure.environment import code_version

        code = code_version()
        with lock.exclusive():  # this process would disturb one that another run measures
            machine = self._machine(jobs[0])
        run, done = self._current(jobs, machine, code, console, again)
        left = [job for job in jobs if job.identity not in done]
        if not left:
            say(console, f"run {run} is done; --again begins another one")
            return []
        failed = []
        with ShardWriter(self.folder) as shard, show_progress(console) as progress:
            progress.begin(
                f"{self.suite['name']} timings",
                total=len(jobs),
                done=len(jobs) - len(left),
                unit="processes",
            )
            for number, job in enumerate(left):
                key = str(number)
                progress.started(key, job.title(self.repetitions))
                progress.event(key, {"phase": "waiting for a quiet machine"})
                with lock.exclusive():
                    timing = self._timing(job, run, code, machine, partial(progress.event, key))
                refuse_other_environments([timing, *self._of_run(run)])
                shard.append(timing)
                seconds = (timing.finished_at - timing.started_at).total_seconds()
                progress.ended(key, timing.status, seconds, timing.error or "")
                if timing.status != "ok":
                    failed.append((timing, self._log(job)))
        return failed

    def _of_run(self, run: str) -> list[TimingRecord]:
        return [timing for timing in read_suite(self.folder).timings if timing.run == run]

    def _machine(self, job: Job) -> dict[str, Any]:
        """The environment of a measuring process; this one does not use the GPU."""
        try:
            found = self._run(job, {"kind": "machine"}, lambda event: None)
        except DiedError as death:
            raise UserError(f"nothing can be measured: {death}; its log: {self._log(job)}") from None
        return dict(found["environment"])

    def _current(
        self,
        jobs: Sequence[Job],
        machine: dict[str, Any],
        code: dict[str, Any],
        console: Console,
        again: bool,
    ) -> tuple[str, set[tuple[str, str, int]]]:
        """The run to continue, and its jobs that are done."""
        timings = read_suite(self.folder).timings
        if timings and not again:
            unlike = {timing.run: timing for timing in timings if _difference(timing, machine)}
            last = next((t for t in reversed(timings) if t.run not in unlike), timings[-1])
            mine = [timing for timing in timings if timing.run == last.run]
            others = _other_versions(jobs, mine)
            what = _difference(unlike.get(last.run, last), machine)
            if not what and any(last.code[name] != code[name] for name in _CODE):
                what = "was made by another code"
            elif not what and others:
                what = f"has other options, shapes or plugin code of {', '.join(others)}"
            if not what:
                if code["dirty"]:
                    changes = "local changes, which may differ from those of its first processes"
                    say(console, f"run {last.run} continues with {changes}; --again begins another one")
                return last.run, {timing.job for timing in mine if timing.status in _DONE}
            say(console, f"run {last.run} {what}; beginning a new one")
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        return f"{moment}-{secrets.token_hex(3)}", set()

    def _log(self, job: Job) -> Path:
        return self.folder / "cells" / job.key / "timing.log"

    def _run(
        self, job: Job, changes: dict[str, Any], hear: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        spec = worker_spec(job, self.threads) | changes
        return run_worker(self.worker, spec, self._log(job), hear)

    def _timing(
        self,
        job: Job,
        run: str,
        code: dict[str, Any],
        machine: dict[str, Any],
        hear: Callable[[dict[str, Any]], None],
    ) -> TimingRecord:
        started, kills = datetime.now(UTC), out_of_memory_kills()
        try:
            found = self._run(job, {}, hear)
        except DiedError as death:
            found = {"status": "failed", "error": str(death), "asked_bytes": None, "measured": {}}
            if death.code == -signal.SIGKILL and out_of_memory_kills() > kills:
                from modbench.measure.footprint import predicted_peak

                found |= {"status": "oom", "asked_bytes": predicted_peak(job.cell, job.kind)}
        return TimingRecord(
            run=run,
            suite=self.suite,
            measurement=job.kind,
            cell=job.cell,
            key=job.key,
            repetition=job.repetition,
            code=code,
            environment=found.get("environment", machine),
            measured=found["measured"],
            asked_bytes=found["asked_bytes"],
            status=found["status"],
            error=found["error"],
            started=started.isoformat(timespec="milliseconds"),
            finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )


def _other_versions(jobs: Sequence[Job], timings: Sequence[TimingRecord]) -> list[str]:
    """Labels of ``jobs`` that stand for another scheme in ``timings``: samples must not be pooled."""
    keys = {job.cell["router"]["label"]: job.key for job in jobs if job.cell["router"] is not None}
    found = {(t.cell["router"]["label"], t.key) for t in timings if t.cell["router"] is not None}
    return sorted({label for label, key in found if keys.get(label, key) != key})


def _difference(timing: TimingRecord, machine: dict[str, Any]) -> str:
    """How machine and settings have changed since ``timing``; empty if they have not."""
    if machine_in_words(timing.environment) != machine_in_words(machine):
        return f"was made by another machine ({machine_in_words(timing.environment)})"
    now, then = (
        settings_of(machine, timing.measurement),
        settings_of(timing.environment, timing.measurement),
    )
    changed = [name for name in sorted(now.keys() | then) if now.get(name) != then.get(name)]
    return f"was made under other settings ({', '.join(changed)})" if changed else ""
