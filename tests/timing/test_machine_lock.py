"""One measurement at a time, and none next to a run."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psutil
import pytest

import modbench
from modbench.errors import UserError
from modbench.timing import system_load
from modbench.timing.system_load import measuring

MEASURE = """
import sys, time
from modbench.timing import system_load
system_load.QUIET_SECONDS = 0
with system_load.measuring():
    print("measuring", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_load.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(system_load, "QUIET_SECONDS", 0.0)


@pytest.fixture
def other() -> "Iterator[subprocess.Popen[str]]":
    """Another process, which measures until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(modbench.__file__).parent.parent)},
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "measuring\n"
    with process:
        yield process
        process.kill()


def test_a_measurement_waits_for_another(other: "subprocess.Popen[str]") -> None:
    reasons: list[str] = []

    def end_the_other() -> None:
        if len(reasons) == 2:
            other.kill()

    with measuring(wait=reasons.append, poll=end_the_other):
        assert other.wait() != 0
    assert reasons[:2] == ["waiting for another measurement to end"] * 2


def test_a_killed_measurement_blocks_no_other(other: "subprocess.Popen[str]") -> None:
    other.kill()
    other.wait()
    with measuring():
        pass


def test_a_run_on_this_machine_is_named_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "modbench"
    script.write_text("print(1, flush=True); input()")
    commands = [[str(script), "run", "my-suite"], [str(script), "report", "run"]]
    run, report = (
        subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for words in commands
    )
    family = [psutil.Process(run.pid), psutil.Process(report.pid)]
    with run, report:
        assert run.stdout
        assert report.stdout
        run.stdout.readline()
        report.stdout.readline()
        monkeypatch.setattr(psutil, "process_iter", lambda words: of(family))
        system_load.refuse_running()  # one's own, and MODBENCH_QUIET_SECONDS=0
        monkeypatch.setattr(system_load, "QUIET_SECONDS", 1.0)
        system_load.refuse_running()  # one's own
        monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [])
        with pytest.raises(UserError, match=rf"process {run.pid} .modbench run my-suite. works on"):
            system_load.refuse_running()
        run.kill()
        report.kill()


def of(processes: list[psutil.Process]) -> Iterator[psutil.Process]:
    """As `psutil.process_iter`, of these alone."""
    for process in processes:
        process.info = {"cmdline": process.cmdline()}
        yield process


def test_a_busy_process_is_named_and_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        def state(self, threads: int) -> dict[str, float]:
            return {"others": 1.0}

    seconds = count()
    spent = {os.getppid(): 0.0, 1: 0.0}
    monkeypatch.setattr(system_load, "QUIET_SECONDS", 0.6)
    monkeypatch.setattr(system_load, "LoadMonitor", Busy)
    monkeypatch.setattr(system_load, "_processor_seconds", lambda: spent | {os.getppid(): next(seconds)})
    reasons: list[str] = []
    started = time.monotonic()
    with measuring(wait=reasons.append):
        assert 0.6 <= time.monotonic() - started < 120
    named = f"waiting for a quiet machine: process {os.getppid()} ("
    assert len(reasons) >= 1
    assert all(reason.startswith(named) for reason in reasons)


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("content")
    (tmp_path / "modbench-measuring.lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"), measuring():
        pass
    assert target.read_text() == "content"


def test_threads_of_one_process_measure_one_after_the_other() -> None:
    at_work: list[int] = []

    def measure() -> None:
        with measuring():
            at_work.append(1)
            assert len(at_work) == 1
            time.sleep(0.2)
            at_work.pop()

    threads = [threading.Thread(target=measure) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert at_work == []
