"""`modbench time`: wall time and memory of every scheme of a suite, untrained. `modbench run` takes the
same measurements, fewer of them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

import modbench
from modbench.errors import UserError
from modbench.records.finished import finished
from modbench.records.line import canonical_json, sha256
from modbench.records.record import DONE, PROTOCOL, TimingKind
from modbench.records.run import Timed
from modbench.records.store import read_suite, remove_leftovers
from modbench.report.times import machine_in_words, settings_of
from modbench.routing.registry import code_sha256
from modbench.sweep.command import end_of_command, run_all, store_suite
from modbench.sweep.job import TimeJob, identity_of
from modbench.sweep.lease import suite_lease
from modbench.sweep.local import Local, refuse_machine
from modbench.sweep.process import environment_of
from modbench.sweep.progress import say
from modbench.sweep.request import TimeRequest
from modbench.sweep.rows import Rows, resolve
from modbench.sweep.suite import load_suite
from modbench.sweep.wanted import chosen, expand, expand_planned, losses_of
from modbench.timing.system_load import parallel, refuse_running

#: Measurements that `modbench time` takes of each scheme, and of the machine.
KINDS: tuple[TimingKind, ...] = (
    "ceiling",
    "training",
    "inference",
    "training_memory",
    "inference_memory",
)


def time_suite(request: TimeRequest) -> int:
    """Finish the last session of this machine, code and settings, or begin a new one; then write the
    report of the suite of ``request`` into its folder of results. Returns the exit code, see
    `modbench.sweep.command.end_of_command`. Raises UserError: an error in the suite, the plugins of all
    rows or the folder, or `modbench run` works on this machine, before anything has run."""
    suite, only = load_suite(request.name, request.settings), request.only
    refuse_running()
    if (repetitions := request.repetitions) is not None:
        suite = replace(suite, time=replace(suite.time, repetitions=repetitions))
    rows = resolve(suite, request.plugins, request.like)
    folder = request.results / suite.header.name
    err = Console(stderr=True)
    tell = partial(say, err)
    plan = TimingPlan.of(rows, folder, only, again=request.again)
    for mistake in rows.mistakes:
        tell(f"{mistake}; the other rows are timed")
    for sentence in rows.additions(only):
        tell(sentence)
    with suite_lease(folder):
        remove_leftovers(folder)
        records = finished(folder)
        wanted = expand(rows, losses_of(records)) if suite.isoflop else expand(rows)
        store_suite(rows, wanted, expand_planned(rows), suite.measure.wanted(), folder, records)
        if plan.begins:
            tell(plan.begins)
        times = suite.time.repetitions
        jobs, total = plan.left(KINDS, times), len(plan.jobs(KINDS, times))
        failures = run_all(rows, folder, jobs, total, "process", Local(), err) if jobs else []
        return end_of_command(rows, folder, failures, "timings.md", tell)


@dataclass(frozen=True, kw_only=True)
class TimingPlan:
    """The processes that time a suite on this machine."""

    rows: Rows
    folder: Path  #: results/<suite>
    timed: dict[str, Timed]  #: by key
    labels: dict[str, str]  #: displayed, by key
    session: str
    machine: dict[str, Any]  #: environment of a process that measures
    begins: str = ""  #: a sentence if other measurements of the folder are not continued

    @classmethod
    def of(
        cls, rows: Rows, folder: Path, only: Sequence[str] = (), *, again: bool = False
    ) -> "TimingPlan":
        """The plan of all rows of ``rows`` or those in ``only``; with isoFLOP grids: every shape of
        every budget. Raises UserError: as `modbench.sweep.wanted.expand` and `chosen`; or nothing can be
        measured here."""
        refuse_blocking_launches()
        refuse_machine(rows.suite.axes.device, rows.suite.train.precision)
        items = chosen(expand_planned(rows), only, rows.mistakes)
        timed = {item.run.timed.key: item.run.timed for item in items}
        labels = {item.run.timed.key: item.label for item in reversed(items)}
        machine = _machine(rows, items[0].run.timed.machine)
        session, begins = _session(rows, folder, machine, again)
        return cls(
            rows=rows,
            folder=folder,
            timed=timed,
            labels=labels,
            session=session,
            machine=machine,
            begins=begins,
        )

    def left(self, kinds: Sequence[TimingKind], repetitions: int) -> list[TimeJob]:
        """The processes of `jobs` without a record."""
        done = {identity_of(line) for line in finished(self.folder) if line.status in (*DONE, "oom")}
        return [job for job in self.jobs(kinds, repetitions) if job.identities[0] not in done]

    def jobs(self, kinds: Sequence[TimingKind], repetitions: int) -> list[TimeJob]:
        """All processes of the session for ``kinds`` in their order: repetition by repetition, so that a
        drift of the machine affects all schemes alike; each repetition begins with another scheme;
        memory comes last, once."""
        machines = {timed.machine.key: timed.machine for timed in self.timed.values()}
        entries: list[tuple[TimingKind, Timed]] = []
        if "ceiling" in kinds:
            entries += [("ceiling", machine) for machine in machines.values()]
        for timed in self.timed.values():
            entries += [(kind, timed) for kind in ("training", "inference") if kind in kinds]
        processes = []
        for number in range(repetitions):
            turn = number % len(entries) if entries else 0
            processes += [(*entry, number + 1) for entry in entries[turn:] + entries[:turn]]
        for timed in self.timed.values():
            memory: tuple[TimingKind, ...] = ("training_memory", "inference_memory")
            processes += [(kind, timed, 1) for kind in memory if kind in kinds]
        return [self._job(*process) for process in processes]

    def _job(self, kind: TimingKind, timed: Timed, repetition: int) -> TimeJob:
        suite = self.rows.suite
        label = self.labels[timed.key] if timed.router else "machine"
        return TimeJob(
            suite=suite.header.name,
            label=label,
            title=f"{label}, {kind.replace('_', ' ')} {repetition}",
            folder=self.folder.resolve() / "timings" / timed.key / f"{kind}-{repetition}",
            results=self.folder.resolve(),
            plugins=tuple(self.rows.plugins_of(timed.router)),
            threads=_threads(self.rows),
            timeout=suite.axes.cell_timeout,
            device=suite.axes.device,
            measures=kind,
            session=self.session,
            timed=timed,
            time=suite.time.resolved(timed.train.sequence).of_a_process(),
            repetition=repetition,
            machine=self.machine,
        )


def refuse_blocking_launches() -> None:
    """Raise a `UserError` if a GPU's kernels are launched one at a time."""
    import torch

    value = os.environ.get("CUDA_LAUNCH_BLOCKING", "0")
    if value not in ("", "0") and torch.cuda.device_count():
        raise UserError(
            f"CUDA_LAUNCH_BLOCKING is {value}: the host waits for each kernel, so that times would not "
            "be those of runs; unset it and run again"
        )


def _threads(rows: Rows) -> int:
    return rows.suite.time.threads or parallel()[1]


def _machine(rows: Rows, timed: Timed) -> dict[str, Any]:
    """The environment of a measuring process; this one does not use the GPU."""
    time, threads = rows.suite.time.resolved(timed.train.sequence).of_a_process(), _threads(rows)
    spec = json.dumps({"timed": timed.as_json(), "time": time, "threads": threads})
    command = [sys.executable, "-P", "-m", "modbench.sweep.timing_job", spec]
    asked = subprocess.run(command, env=environment_of(threads), capture_output=True, text=True)
    if asked.returncode:
        lines = asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"]
        raise UserError(f"nothing can be measured: {lines[-1]}; repair the installation")
    return dict(json.loads(asked.stdout.splitlines()[-1]))


def _session(rows: Rows, folder: Path, machine: dict[str, Any], again: bool) -> tuple[str, str]:
    """The session to continue, or a new one: a hash of the machine, its settings, those of [time], the
    code and the version of the measurement, and a number; and a sentence if another one is not
    continued. Times of two versions of a scheme are not pooled: its code is in the key of what is
    timed."""
    code = code_sha256(Path(modbench.__file__))
    parts = [machine_in_words(machine), settings_of(machine, "training"), code, PROTOCOL]
    made = sha256(canonical_json([*parts, rows.suite.time.compared()]))[:12]
    timings = read_suite(folder).timings if folder.exists() else []
    mine = [timing for timing in timings if timing.session.startswith(made)]
    if mine and not again:
        return mine[-1].session, ""
    session = f"{made}-{len({timing.session for timing in mine}) + 1}"
    if not timings or again:
        return session, ""
    what = "of another machine, other settings or code"
    return session, f"session {timings[-1].session} is {what}; beginning session {session}"
