"""One measurement at a time; training looks for it and pauses, and holds no lock."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

import modbench
from modbench.errors import UserError
from modbench.timing import system_load
from modbench.timing.system_load import measured_elsewhere, measuring

MEASURE = """
import sys, time
from modbench.timing import system_load
system_load.QUIET_SECONDS = 0
with system_load.measuring("suite/row"):
    print("measuring", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path))
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


def test_a_measurement_is_named_while_it_lasts(other: "subprocess.Popen[str]") -> None:
    assert measured_elsewhere() == f"the measurement of suite/row (process {other.pid})"
    assert other.stdin is not None
    other.stdin.close()
    other.wait()
    assert measured_elsewhere() is None


def test_a_measurement_waits_for_another_and_names_it(other: "subprocess.Popen[str]") -> None:
    reasons: list[str] = []

    def end_the_other() -> None:
        if len(reasons) == 2:
            other.kill()

    with measuring("mine", wait=reasons.append, poll=end_the_other):
        assert other.wait() != 0
        assert measured_elsewhere() is None  # one's own is none
    said = f"waiting for the measurement of suite/row (process {other.pid}) to end"
    assert reasons[:2] == [said, said]


def test_a_killed_measurement_blocks_no_other(other: "subprocess.Popen[str]") -> None:
    other.kill()
    other.wait()
    assert measured_elsewhere() is None
    with measuring("mine"):
        pass


@pytest.mark.parametrize("content", ["", '{"pid": 1, "since": 0, "title": "t"}'])
def test_a_damaged_file_blocks_no_measurement(content: str, tmp_path: Path) -> None:
    (tmp_path / "measuring.json").write_text(content)
    assert measured_elsewhere() is None


def test_a_process_id_that_was_used_again_is_another_process(tmp_path: Path) -> None:
    stated = {"pid": os.getppid(), "since": 1.0, "title": "t"}
    (tmp_path / "measuring.json").write_text(json.dumps(stated))
    assert measured_elsewhere() is None


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
    with measuring("mine", wait=reasons.append):
        assert 0.6 <= time.monotonic() - started < 120
    named = f"waiting for a quiet machine: process {os.getppid()} ("
    assert len(reasons) >= 1
    assert all(reason.startswith(named) for reason in reasons)


def test_a_read_only_cache_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(system_load.tempfile, "gettempdir", lambda: str(tmp_path))
    with measuring("mine"):
        assert list(tmp_path.glob("modbench-*/measuring.json"))


@pytest.mark.parametrize("prepared", ["link", "open to others"])
def test_a_fallback_of_the_cache_that_others_prepared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(system_load.tempfile, "gettempdir", lambda: str(tmp_path))
    fallback, target = tmp_path / f"modbench-{os.getuid()}", tmp_path / "target"
    target.mkdir(mode=0o700)
    if prepared == "link":
        fallback.symlink_to(target)
    else:
        fallback.mkdir()
        fallback.chmod(0o777)
    with pytest.raises(UserError, match="MODBENCH_CACHE"), measuring("mine"):
        pass
    assert not [*target.iterdir()]


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("content")
    (tmp_path / "measuring.lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"), measuring("mine"):
        pass
    assert target.read_text() == "content"


def test_threads_of_one_process_measure_one_after_the_other() -> None:
    at_work: list[int] = []

    def measure() -> None:
        with measuring("mine"):
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
