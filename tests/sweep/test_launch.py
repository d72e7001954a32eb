"""Handing jobs to an engine of several machines, with an engine that records them at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from drive_engine import fake_job, fakes_left
from rich.console import Console

from modbench.errors import UserError
from modbench.records.store import append_record, read_suite
from modbench.sweep import loop
from modbench.sweep.executor import Executor, Tell
from modbench.sweep.job import FILE, Job, RunJob
from modbench.sweep.lease import Lease
from modbench.sweep.loop import Failure, Loop
from modbench.sweep.process import Events
from modbench.sweep.progress import Progress

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(loop, "_LATE_SECONDS", 2.0)


class Recorder(Executor):
    """Records each job as it is submitted, with the first word of its title as its status; loses those
    called lost, and keeps those called kept."""

    def __init__(self, refusals: int = 0, most: int = 1000) -> None:
        self.most = most
        self.arrays: list[list[str]] = []
        self.has: set[Path] = set()
        self.refusals = refusals
        self.ended: list[Path] = []

    def room(self, alive: int) -> int:
        return 1000

    def alive(self) -> set[Path]:
        return {*self.has}

    def submit(self, jobs: Sequence[Job], tell: Tell) -> Sequence[Job]:
        if self.refusals:
            self.refusals -= 1
            raise UserError("too many")
        if len(jobs) > self.most:
            raise UserError("the array is too long")
        self.arrays.append([job.title for job in jobs])
        for job in jobs:
            assert (job.folder / FILE).is_file()
            status = job.title.split()[0]
            if status in ("failed", "diverged"):
                record(job, status)
            elif status == "kept":
                self.has.add(job.folder)
        return jobs

    def end(self, folder: Path) -> None:
        self.ended.append(folder)
        self.has.discard(folder)

    def log(self, folder: Path) -> Path | None:
        return folder / "engine.txt"

    def stop(self, hurry: Callable[[], bool], tell: Tell) -> None:
        tell("they go on")


def record(job: Job, status: str) -> None:
    how = (status, "as asked", datetime.now(UTC))
    append_record(job.results, job.failure(job.identities[0], *how))


def jobs_of(folder: Path, *labels: str, timeout: float = 60.0) -> list[RunJob]:
    return [fake_job(left, folder, timeout=timeout) for left in fakes_left(folder, list(labels))]


def run(folder: Path, jobs: list[RunJob], engine: Recorder) -> tuple[list[Failure], str]:
    said = StringIO()
    progress = Progress(Console(file=said, width=200))
    progress.begin("s", total=len(jobs), done=0)
    try:
        return Loop(folder, engine, progress).run(jobs), said.getvalue()
    except KeyboardInterrupt:
        return [], said.getvalue() + "interrupted"


def test_each_job_is_submitted_once_and_failures_are_told(tmp_path: Path) -> None:
    engine = Recorder()
    failures, said = run(tmp_path, jobs_of(tmp_path, "diverged", "failed", "diverged 2"), engine)
    assert engine.arrays == [["diverged", "failed", "diverged 2"]]
    assert [(failure.title, failure.error) for failure in failures] == [("failed", "as asked")]
    assert "3 of 3 runs done" in said


def test_a_job_that_the_engine_loses_is_told_and_not_submitted_again(tmp_path: Path) -> None:
    engine = Recorder()
    (failure,), _ = run(tmp_path, jobs_of(tmp_path, "lost", "diverged"), engine)
    assert (failure.title, failure.error) == ("lost", "its task ended without a record")
    assert failure.log.name == "engine.txt"  # the job has written none
    assert engine.arrays == [["lost", "diverged"]]


def test_what_another_process_works_on_or_is_queued_is_waited_for(tmp_path: Path) -> None:
    engine = Recorder()
    jobs = jobs_of(tmp_path, "diverged", "claimed", "queued", "diverged 2")
    lease = Lease(jobs[1].folder)
    assert lease.take()
    engine.has.add(jobs[2].folder)

    def others() -> None:
        time.sleep(0.5)
        record(jobs[1], "diverged")
        lease.release()
        record(jobs[2], "diverged")
        engine.has.clear()

    thread = threading.Thread(target=others)
    thread.start()
    failures, said = run(tmp_path, jobs, engine)
    thread.join()
    assert failures == []
    assert engine.arrays == [["diverged", "diverged 2"]]
    assert "claimed: another process works on it" in said


def test_what_another_process_has_failed_at_is_tried(tmp_path: Path) -> None:
    engine = Recorder()
    (job,) = jobs_of(tmp_path, "diverged")
    lease = Lease(job.folder)
    assert lease.take()

    def other() -> None:
        time.sleep(0.5)
        record(job, "failed")
        lease.release()

    thread = threading.Thread(target=other)
    thread.start()
    failures, _ = run(tmp_path, [job], engine)
    thread.join()
    assert failures == []
    assert engine.arrays == [["diverged"]]


def test_what_was_queued_and_is_gone_is_submitted(tmp_path: Path) -> None:
    engine = Recorder()
    jobs = jobs_of(tmp_path, "diverged")
    engine.has.add(jobs[0].folder)
    thread = threading.Timer(0.5, engine.has.clear)
    thread.start()
    assert run(tmp_path, jobs, engine)[0] == []
    assert engine.arrays == [["diverged"]]


def test_a_refusal_ends_the_command_unless_other_jobs_are_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(tmp_path, "diverged")
    with pytest.raises(UserError, match="too many"):
        run(tmp_path, jobs, Recorder(refusals=1))
    engine = Recorder(refusals=3)
    engine.has.add(tmp_path / "of another suite")
    failures, said = run(tmp_path, jobs, engine)
    assert failures == []
    assert said.count("too many; tried again later") == 1


def test_the_events_of_a_job_are_shown_and_an_interrupt_leaves_it(tmp_path: Path) -> None:
    engine = Recorder()
    (job,) = jobs_of(tmp_path, "kept")

    def others() -> None:
        while not engine.has:
            time.sleep(0.02)
        Events(job.folder).say({"event": "step", "phase": "train", "step": 3, "steps": 9})
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=others)
    thread.start()
    _, said = run(tmp_path, [job], engine)
    thread.join()
    assert "kept: train 3/9" in said
    assert said.endswith("they go on\ninterrupted")


def test_a_refused_array_is_halved(tmp_path: Path) -> None:
    engine = Recorder(most=2)
    labels = [f"diverged {number}" for number in range(5)]
    failures, _ = run(tmp_path, jobs_of(tmp_path, *labels), engine)
    assert failures == []
    assert engine.arrays == [labels[:2], labels[2:4], labels[4:]]


def test_a_task_that_makes_no_progress_is_ended_and_its_job_recorded_as_failed(tmp_path: Path) -> None:
    """Its executor still has it; another one, which waits in the queue, is left alone."""
    engine = Recorder()
    jobs = jobs_of(tmp_path, "kept", "kept 2", timeout=1.0)

    def others() -> None:
        while not engine.has:
            time.sleep(0.02)
        Events(jobs[0].folder).say({"event": "phase", "phase": "train"})
        while not engine.ended:
            time.sleep(0.02)
        time.sleep(3)
        record(jobs[1], "diverged")

    thread = threading.Thread(target=others)
    thread.start()
    (failure,), _ = run(tmp_path, jobs, engine)
    thread.join()
    assert engine.ended == [jobs[0].folder]
    assert failure.error == "no progress for 1 s in step train; its process was ended"
    assert sorted(record.status for record in read_suite(tmp_path).runs) == ["diverged", "failed"]


def test_a_mistake_of_a_plugin_is_one_on_every_executor(tmp_path: Path) -> None:
    engine = Recorder()
    (job,) = jobs_of(tmp_path, "kept")

    def others() -> None:
        while not engine.has:
            time.sleep(0.02)
        Events(job.folder).say({"event": "end", "code": 2, "error": "router 'x' raised KeyError"})
        record(job, "failed")
        engine.has.clear()

    thread = threading.Thread(target=others)
    thread.start()
    (failure,), _ = run(tmp_path, [job], engine)
    thread.join()
    assert failure.refused
