import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from drive_engine import FAKE, fake_job, fake_run, fakes_left, key_of, run_fakes
from inline import PATIENCE
from rich.console import Console

from modbench.records.finished import Finished
from modbench.records.store import append_record, read_suite
from modbench.sweep import process
from modbench.sweep.process import KILLED
from modbench.sweep.wanted import left_of

pytestmark = pytest.mark.processes

DRIVER = Path(__file__).with_name("drive_engine.py")


@pytest.fixture(autouse=True)
def _fake_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "COMMAND", FAKE)


def run(folder: Path, *labels: str, **settings: object) -> tuple[list, str]:
    """The failures, and the text of the display."""
    said = StringIO()
    failures = run_fakes(folder, list(labels), Console(file=said, width=200), **settings)
    return failures, said.getvalue()


def starts(folder: Path) -> list[str]:
    file = folder / "started.txt"
    return [line.rsplit(" ", 1)[0] for line in file.read_text().splitlines()] if file.exists() else []


def statuses(folder: Path) -> list[tuple[str, str]]:
    runs = read_suite(folder).runs
    return sorted((record.run["router"]["options"]["label"], record.status) for record in runs)


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline, f"{file.name} never came"
        time.sleep(0.02)


def start_driver(folder: Path, *labels: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(DRIVER), str(folder), *labels]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def is_alive(pid: int) -> bool:
    """Return True if ``pid`` runs and is not a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_each_cell_runs_once_and_what_is_recorded_is_not_repeated(tmp_path: Path) -> None:
    assert run(tmp_path / "s", "a", "b")[0] == []
    run(tmp_path / "s", "a", "b", "c")
    assert starts(tmp_path / "s") == ["a", "b", "c"]
    assert statuses(tmp_path / "s") == [("a", "ok"), ("b", "ok"), ("c", "ok")]


def test_a_crash_is_recorded_without_machine_paths_and_the_suite_goes_on(tmp_path: Path) -> None:
    failures, said = run(tmp_path / "s", "crash", "b")
    assert statuses(tmp_path / "s") == [("b", "ok"), ("crash", "failed")]
    (failure,) = failures
    assert failure.error == "exit code 1: RuntimeError: no such file: data.txt"
    assert failure.log.read_text().count("Traceback") == 1
    assert "crash: failed after" in said
    assert "2 of 2 runs done" in said


def test_a_failed_cell_is_tried_again_and_a_diverged_one_is_not(tmp_path: Path) -> None:
    labels = ["crash", "refused", "diverged", "oom"]
    for _ in range(2):
        run(tmp_path / "s", *labels)
    assert starts(tmp_path / "s").count("crash") == 2
    assert starts(tmp_path / "s").count("refused") == 2
    assert starts(tmp_path / "s").count("diverged") == 1
    assert starts(tmp_path / "s").count("oom") == 1


def test_a_kill_by_hand_is_a_failure_and_one_by_the_kernel_is_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "out_of_memory_kills", lambda: 0)  # not those of the machine
    (failure,), _ = run(tmp_path / "s", "killed")
    assert failure.status == "failed"
    assert failure.error == KILLED
    kills = iter(range(10))
    monkeypatch.setattr(process, "out_of_memory_kills", lambda: next(kills))
    (failure,), _ = run(tmp_path / "s", "killed")
    assert failure.status == "oom"
    assert failure.error == KILLED


def test_a_cell_that_hangs_is_ended_and_the_others_go_on(tmp_path: Path) -> None:
    (failure,), _ = run(tmp_path / "s", "deaf", "a", timeout=15.0)
    assert failure.error == "no progress for 15 s in step train; its process was ended"
    assert statuses(tmp_path / "s") == [("a", "ok"), ("deaf", "failed")]
    assert not is_alive(int((tmp_path / "s" / "deaf.pid").read_text()))


def test_a_cell_that_is_killed_after_its_record_has_that_records_status(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    (item,) = fakes_left(folder, ["recorded"])
    job = fake_job(item, folder)
    how = ("failed", "an old story", datetime.now(UTC))
    append_record(folder, job.failure(job.identities[0], *how))
    (old,) = (folder / "records").iterdir()
    old.rename(old.with_name("zzzz.jsonl"))  # names are random; this one comes last
    assert run(folder, "recorded")[0] == []
    assert statuses(folder) == [("recorded", "failed"), ("recorded", "ok")]


def test_a_worker_that_ends_without_a_result_has_failed(tmp_path: Path) -> None:
    (failure,), _ = run(tmp_path / "s", "ends", "a")
    assert (failure.status, failure.error[:11]) == ("failed", "exit code 0")
    assert statuses(tmp_path / "s") == [("a", "ok"), ("ends", "failed")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_stores_a_checkpoint_and_resumes_without_repeating(
    tmp_path: Path, number: int
) -> None:
    folder = tmp_path / "s"
    driver = start_driver(folder, "a", "slow", "b")
    wait_for(folder / "slow.pid")
    driver.send_signal(number)
    _, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130
    assert "Traceback" not in said
    assert statuses(folder) == [("a", "ok")]
    assert (folder / "runs" / key_of("slow") / "half_way").exists()
    run(folder, "a", "slow", "b")
    assert starts(folder) == ["a", "slow", "slow", "b"]
    assert statuses(folder) == [("a", "ok"), ("b", "ok"), ("slow", "ok")]


def test_a_second_interrupt_kills_a_cell_that_does_not_stop(tmp_path: Path) -> None:
    driver = start_driver(tmp_path / "s", "deaf")
    wait_for(tmp_path / "s" / "deaf.pid")
    driver.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert driver.poll() is None
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130
    assert not is_alive(int((tmp_path / "s" / "deaf.pid").read_text()))


def test_after_a_kill_of_the_run_its_cell_ends_too_and_the_rest_resumes(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    driver = start_driver(folder, "a", "slow", "b")
    wait_for(folder / "slow.pid")
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=PATIENCE)
    run(folder, "a", "slow", "b")
    assert sorted(starts(folder)) == ["a", "b", "slow", "slow"]
    assert (folder / "runs" / key_of("slow") / "half_way").exists()
    assert not is_alive(int((folder / "slow.pid").read_text()))
    assert statuses(folder) == [("a", "ok"), ("b", "ok"), ("slow", "ok")]


def test_a_run_that_another_process_works_on_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    first = start_driver(folder, "slow", "a")
    wait_for(folder / "slow.pid")
    second = start_driver(folder, "slow", "a", "b")
    deadline = time.monotonic() + PATIENCE
    while len(starts(folder)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert second.poll() is None  # it has nothing to do but wait
    os.kill(first.pid, signal.SIGKILL)  # its worker stores a checkpoint and ends
    _, said = second.communicate(timeout=PATIENCE)
    first.communicate(timeout=PATIENCE)
    assert "slow: another process works on it" in said
    assert sorted(starts(folder)) == ["a", "b", "slow", "slow"]
    assert statuses(folder) == [("a", "ok"), ("b", "ok"), ("slow", "ok")]


@pytest.mark.slow
def test_a_worker_that_was_stopped_loses_its_job_and_stores_nothing_when_it_wakes(
    tmp_path: Path,
) -> None:
    """After the minute that a lease lives."""
    folder = tmp_path / "s"
    first = start_driver(folder, "slow")
    wait_for(folder / "slow.pid")
    worker = int((folder / "slow.pid").read_text())
    os.kill(worker, signal.SIGSTOP)
    _, said = start_driver(folder, "slow").communicate(timeout=300)
    assert "slow: another process works on it" in said
    (record,) = (folder / "records").iterdir()
    assert starts(folder) == ["slow", "slow"]
    os.kill(worker, signal.SIGCONT)
    first.communicate(timeout=PATIENCE)
    assert first.returncode == 0
    assert [*(folder / "records").iterdir()] == [record]
    assert not (folder / "runs" / key_of("slow") / "half_way").exists()


def test_a_job_that_dies_while_it_measures_keeps_its_training(tmp_path: Path) -> None:
    """The measurement fails, and the next command takes it again, without a training step."""
    folder = tmp_path / "s"
    (failure,), _ = run(folder, "measured, killed")
    assert failure.error == KILLED
    assert statuses(folder) == [("measured, killed", "ok")]
    assert [record.status for record in read_suite(folder).measurements] == ["failed"]
    (left,) = fakes_left(folder, ["measured, killed"])
    assert (left.train, len(left.measurements)) == (False, 1)
    assert run(folder, "measured, killed")[0] == []
    assert len(read_suite(folder).runs) == 1
    assert fakes_left(folder, ["measured, killed"]) == []


def test_lack_of_memory_counts_as_done_unless_it_is_to_be_tried_again() -> None:
    record = Finished("run", fake_run("a").run.key, "oom")
    assert left_of([fake_run("a")], [], [record], audit=False) == []
    assert len(left_of([fake_run("a")], [], [record], audit=False, retry=True)) == 1


@pytest.mark.parametrize("order", [1, -1])
def test_a_run_that_ended_after_a_lack_of_memory_is_measured(order: int) -> None:
    """Whichever of its two records is read first."""
    key = fake_run("a").run.key
    records = [Finished("run", key, "oom"), Finished("run", key, "ok")][::order]
    heldout = [("heldout", {"heldout_tokens": 9})]
    (left,) = left_of([fake_run("a")], heldout, records, audit=False)
    assert (left.train, len(left.measurements)) == (False, 1)


def test_the_kernels_kills_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "Path", lambda name: tmp_path / name.replace("/", "_"))
    assert process.out_of_memory_kills() == 0  # not Linux
    (tmp_path / "_proc_vmstat").write_text("pgfault 7\noom_kill 3\nx_oom_kill 90\n")
    assert process.out_of_memory_kills() == 3
