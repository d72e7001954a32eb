"""`modbench time`: wall time and memory of every scheme of a suite, untrained."""

import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from modbench.errors import UserError
from modbench.report.page import write_report
from modbench.report.record import TimingRecord
from modbench.report.store import read_suite, remove_leftovers
from modbench.report.timing import machine_in_words, settings_of
from modbench.sweep.engine import Engine, Failure, InterruptedRunError, Job
from modbench.sweep.lock import suite_lock
from modbench.sweep.progress import show_progress
from modbench.sweep.rows import Rows, resolve
from modbench.sweep.suite import load_suite
from modbench.sweep.terminal import say, show_leaderboard
from modbench.sweep.timing_jobs import TimedProcess, timing_cells, timing_jobs
from modbench.sweep.worker import COMMAND, DiedError, run_worker

_DONE = ("ok", "oom")
_CODE = ("version", "commit", "dirty")


def time_suite(
    name: str,
    *,
    results: Path,
    plugins: Sequence[Path] = (),
    only: Sequence[str] = (),
    repetitions: int | None = None,
    again: bool = False,
    command: Sequence[str] = COMMAND,
) -> int:
    """Finish the last run, if machine, code and schemes are unchanged, or begin a new one; then write
    the report into ``results``/<suite>.

    Returns the exit code: 0, 1 if a process failed, 2 if a plugin has a mistake and other rows are
    timed, 130 if the user stopped the run. Running out of memory is a result, not a failure.

    Raises:
        UserError: an error in the suite, the plugins of all rows or the folder, before anything has run;
            or the report can't be written, see `modbench.report.page.write_report`.
    """
    if repetitions is not None and repetitions < 1:
        raise UserError(f"--repetitions is {repetitions}; it must be 1 or more")
    err = Console(stderr=True)
    rows = resolve(load_suite(name), plugins)
    cells = timing_cells(rows, only)
    suite = rows.suite
    if repetitions is None:
        repetitions = suite.time.repetitions
    else:
        replace(suite.time, repetitions=repetitions)  # raises UserError for too few samples
    for mistake in rows.mistakes:
        say(err, f"{mistake}; the other rows are timed")
    folder = results / suite.header.name
    try:
        with suite_lock(folder, "time"):
            remove_leftovers(folder)
            wanted = timing_jobs(cells, repetitions)
            failures = _run_left(rows, wanted, folder, err, repetitions, again, command)
            written = write_report(folder, say=partial(say, err))
    except InterruptedRunError:
        say(err, "stopped; run the same command again to continue")
        return 130
    show_leaderboard((folder / "timings.md").read_text(encoding="utf-8"))
    for path in written:
        print(path)
    said = [f"{one.title} {one.status}: {one.error}; its log: {one.log}" for one in failures]
    for text in dict.fromkeys(said):
        say(err, text)
    broken = sum(failure.status == "failed" for failure in failures)
    if broken:
        say(err, f"{broken} of {len(wanted)} processes failed; run the same command again to try them")
    return 2 if rows.mistakes else 1 if broken else 0


def _run_left(
    rows: Rows,
    wanted: Sequence[TimedProcess],
    folder: Path,
    console: Console,
    repetitions: int,
    again: bool,
    command: Sequence[str],
) -> list[Failure]:
    """Run the processes that are left, one at a time; return the failures.

    Raises:
        InterruptedRunError: the user stopped the run.
    """
    from modbench.measure.environment import code_version
    from modbench.measure.system_load import thread_count

    suite, code = rows.suite, code_version()
    threads = suite.time.threads or thread_count()
    machine = _machine(wanted[0], threads, command)
    timings = [] if again else read_suite(folder).timings
    run, done = _current(wanted, timings, machine, code, console)
    with show_progress(console) as progress:
        jobs = [
            _job(one, rows, folder, run, threads, machine, repetitions)
            for one in wanted
            if one[:3] not in done
        ]
        if not jobs:
            say(console, f"run {run} is done; --again begins another one")
            return []
        name = f"{suite.header.name} timings"
        progress.begin(name, total=len(wanted), done=len(wanted) - len(jobs), unit="processes")
        engine = Engine(
            folder=folder, progress=progress, timeout=suite.axes.cell_timeout, command=command
        )
        return engine.run(jobs)


def _machine(one: TimedProcess, threads: int, command: Sequence[str]) -> dict[str, Any]:
    """The environment of a measuring process; this one does not use the GPU."""
    spec = {"job": "machine", "cell": {**one.cell, "router": None}, "plugins": [], "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = run_worker(spec, log=Path(folder, "log.txt"), command=command)
        except DiedError as death:
            raise UserError(f"nothing can be measured: {death}; repair the installation") from None
    return dict(found["environment"])


def _job(
    one: TimedProcess,
    rows: Rows,
    folder: Path,
    run: str,
    threads: int,
    machine: dict[str, Any],
    repetitions: int,
) -> Job:
    suite = rows.suite.header
    spec = {
        "job": one.measurement,
        "run": run,
        "suite": {"name": suite.name, "version": suite.version},
        "cell": one.cell,
        "repetition": one.repetition,
        "plugins": rows.plugins_of(one.cell),
        "results": str(folder.resolve()),
        "threads": threads,
    }
    return Job(
        identity=("timing", one.key, run, one.measurement, one.repetition),
        title=one.title(repetitions),
        spec=spec,
        log=folder / "cells" / one.key / "timing.txt",
        crash_record=partial(_crash_record, spec, machine),
    )


def _crash_record(
    spec: dict[str, Any], machine: dict[str, Any], status: str, error: str, started: datetime
) -> TimingRecord:
    """The record of a process that wrote none."""
    from modbench.measure.footprint import predicted_peak
    from modbench.sweep.timing_job import timing_record

    asked = None
    if status == "oom" and not spec["plugins"]:  # code of plugins does not run in this process
        asked = predicted_peak(spec["cell"], spec["job"])
    found: dict[str, Any] = {"status": status, "error": error, "asked_bytes": asked, "measured": {}}
    return timing_record(spec, machine, found, started)


def _current(
    wanted: Sequence[TimedProcess],
    timings: Sequence[TimingRecord],
    machine: dict[str, Any],
    code: dict[str, Any],
    console: Console,
) -> tuple[str, set[tuple[str, str, int]]]:
    """The run to continue, and its processes that are done."""
    if timings:
        unlike = {timing.run: timing for timing in timings if _difference(timing, machine)}
        last = next((t for t in reversed(timings) if t.run not in unlike), timings[-1])
        mine = [timing for timing in timings if timing.run == last.run]
        others = _other_versions(wanted, mine)
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


def _other_versions(wanted: Sequence[TimedProcess], timings: Sequence[TimingRecord]) -> list[str]:
    """Labels of ``wanted`` that stand for another scheme in ``timings``: samples must not be pooled."""
    keys = {one.cell["router"]["label"]: one.key for one in wanted if one.cell["router"] is not None}
    found = {(t.cell["router"]["label"], t.key) for t in timings if t.cell["router"] is not None}
    return sorted({label for label, key in found if keys.get(label, key) != key})


def _difference(timing: TimingRecord, machine: dict[str, Any]) -> str:
    """How machine and settings have changed since ``timing``; empty if they have not."""
    before = machine_in_words(timing.environment)
    if before != machine_in_words(machine):
        return f"was made by another machine ({before})"
    now = settings_of(machine, timing.measurement)
    then = settings_of(timing.environment, timing.measurement)
    changed = [name for name in sorted(now.keys() | then) if now.get(name) != then.get(name)]
    return f"was made under other settings ({', '.join(changed)})" if changed else ""
