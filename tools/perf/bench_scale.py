"""A sweep of 100,000 runs besides the runs: listed, submitted without a scheduler, found finished; and
1,000 simulated workers on one folder."""

import multiprocessing
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bench_sweep import GRID, finish, suite_of
from pytest_benchmark.fixture import BenchmarkFixture
from targets import Reach

from modbench.measure import environment as environments
from modbench.records.finished import Watch
from modbench.records.run import Run
from modbench.records.store import append_record, read_suite
from modbench.report.write import Report, write_report
from modbench.sweep import run
from modbench.sweep.executor import AT_ONCE
from modbench.sweep.job import done_of, run_identity, run_record
from modbench.sweep.lease import Lease
from modbench.sweep.request import RunRequest
from modbench.sweep.rows import resolve
from modbench.sweep.run import jobs_of, run_jobs
from modbench.sweep.slurm import Slurm
from modbench.sweep.suite import Suite
from modbench.sweep.wanted import expand, left_of, titles

MANY = 100_000
MACHINES, WORKERS, JOBS = 10, 100, 2_000
DATA = {"sha256": "0" * 64, "train_tokens": 1, "heldout_tokens": 1}


def many() -> Suite:
    return suite_of(GRID | {"sweep": GRID["sweep"] | {"seeds": range(400)}})


def apart(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of processor time, peak memory above that at the start in GB, and result of ``work`` in a
    process of its own."""
    answers: Any = multiprocessing.get_context("fork").SimpleQueue()

    def child() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        result = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answers.put((time.process_time() - began, (peak - before) / 1e6, result))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    answer: tuple[float, float, Any] = answers.get()
    process.join()
    return answer


def test_many_jobs_are_listed_and_submitted(
    benchmark: BenchmarkFixture, reach: Reach, tmp_path: Path
) -> None:
    suite = many()
    folder = tmp_path / suite.header.name

    def listed() -> tuple[int, float, float]:
        rows = resolve(suite)
        wanted = expand(rows)
        left = left_of(wanted, suite.measure.wanted(), [], audit=True)
        jobs = run_jobs(left, titles(wanted), jobs_of(suite, data=DATA), folder, rows.plugins_of)
        began = time.process_time()
        for first in range(0, len(jobs), AT_ONCE):
            assert "--array=0-999" in Slurm(folder, {}, 0).script(jobs[first : first + AT_ONCE])
        rendered = time.process_time() - began
        began = time.process_time()
        for job in jobs[:AT_ONCE]:
            job.write()
        return len(jobs), rendered, time.process_time() - began

    measured = benchmark.pedantic(apart, args=(listed,), rounds=1, iterations=1)
    seconds, memory, (jobs, rendered, written) = measured
    assert jobs == MANY
    reach(f"listing {MANY:,} jobs that are left", seconds - rendered - written, 20, "s of CPU")
    reach(f"listing {MANY:,} jobs, memory", memory, 4, "GB")
    reach(f"rendering the scripts of all arrays of {AT_ONCE:,}", rendered, 20, "s")
    reach(f"writing the files of {AT_ONCE:,} jobs", written, 20, "s")


def test_many_runs_are_found_finished(
    benchmark: BenchmarkFixture, reach: Reach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = many()
    finish(suite, tmp_path / suite.header.name)
    monkeypatch.setattr(run, "load_suite", lambda name, settings: suite)
    monkeypatch.setattr("modbench.report.write.write_report", lambda *given, **named: Report([], {}))

    def recognise() -> int:
        return run.run_suite(RunRequest(name="many", results=tmp_path))

    seconds, memory, code = benchmark.pedantic(apart, args=(recognise,), rounds=1, iterations=1)
    assert code == 0
    reach(f"recognising {MANY:,} finished runs", seconds, 30, "s of CPU")
    reach(f"recognising {MANY:,} finished runs, memory", memory, 3, "GB")
    seconds, memory, _ = apart(lambda: write_report(tmp_path / suite.header.name, csv=True) and None)
    reach.shown(f"report --csv of {MANY:,} runs with a measurement each", seconds, "s of CPU")
    reach.shown(f"report --csv of {MANY:,} runs, memory", memory, "GB")


def machine(folder: Path, runs: list[Run], number: int) -> None:
    """Do what is left of ``runs`` in ``folder`` with many threads that share what they have read."""
    watch = Watch(folder)
    done: set[Any] = set()
    reading = threading.Lock()
    jobs = [(run_identity(item), item) for item in runs]
    environment = {"cpu": None, "gpu": None, "threads": 1, "torch": "0"}

    def read() -> None:
        with reading:
            done.update(done_of(watch.new()))

    def work(seed: int) -> None:
        draw = random.Random(seed)
        order = draw.sample(jobs, len(jobs))
        while order:
            identity, item = order.pop()
            if identity in done:
                continue
            lease = Lease(folder / "runs" / identity[1])
            if not lease.take():
                order.insert(draw.randrange(len(order) + 1), (identity, item))
                time.sleep(draw.uniform(0.5, 1.5))  # as a loop waits
                read()
                continue
            read()
            if identity not in done:
                how = ("diverged", "simulated", datetime.now(UTC))
                append_record(folder, run_record(item, DATA, environment, *how))
            lease.release()

    threads = [threading.Thread(target=work, args=(WORKERS * number + n,)) for n in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_many_workers_lose_nothing_and_do_nothing_twice(
    benchmark: BenchmarkFixture, reach: Reach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It calls git; a real job does so once in minutes.
    version = {"version": "0", "commit": None, "dirty": None}
    monkeypatch.setattr(environments, "code_version", lambda: version)
    runs = [wanted.run for wanted in expand(resolve(suite_of(GRID)))[:JOBS]]
    context = multiprocessing.get_context("fork")

    def together() -> None:
        machines = [
            context.Process(target=machine, args=(tmp_path / "s", runs, number))
            for number in range(MACHINES)
        ]
        for process in machines:
            process.start()
        for process in machines:
            process.join()
        assert all(process.exitcode == 0 for process in machines)

    benchmark.pedantic(together, rounds=1, iterations=1)
    made = Counter(record.key for record in read_suite(tmp_path / "s").runs)
    what = f"of {JOBS:,} jobs by {MACHINES * WORKERS:,} workers"
    reach(f"lost, {what}", len({run.key for run in runs} - made.keys()), 0, "jobs")
    reach(f"double, {what}", sum(made.values()) - len(made), 0, "jobs")
    reach.shown(f"a job, {what}", 1000 * benchmark.stats.stats.total / JOBS, "ms")
