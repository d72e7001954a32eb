"""Workers of jobs as tasks of Slurm, without the command that handed them over."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drive_engine import FAKE, fake_job, fakes_left, run_fakes
from rich.console import Console

from modbench.records.store import read_suite
from modbench.sweep import process
from modbench.sweep.lease import Lease
from modbench.sweep.process import EVENTS, Events
from modbench.trained.weights_folder import WEIGHTS

pytestmark = pytest.mark.processes

DRIVER = Path(__file__).with_name("drive_task.py")


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def written(suite: Path, label: str) -> Path:
    """The folder of the job of a fake run, which its file is in."""
    (left,) = fakes_left(suite, [label])
    job = fake_job(left, suite)
    job.write()
    return job.folder


def starts(suite: Path) -> int:
    file = suite / "started.txt"
    return len(file.read_text().splitlines()) if file.exists() else 0


def in_a_process(folder: Path, **settings: object) -> "subprocess.Popen[str]":
    listed = folder.parent / "jobs.txt"
    listed.write_text(f"/nowhere\n{folder}\n")
    command = [sys.executable, str(DRIVER), str(listed), "1"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **settings)


def run_task(folder: Path, patience: float = 90.0) -> bool:
    """Do the job of ``folder``, in a process; return True if it ended well, or another process does
    it."""
    task = in_a_process(folder, env={**os.environ, "FAKE_PATIENCE": str(patience)})
    task.communicate(timeout=120)
    return task.returncode == 0


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline, f"{file.name} never came"
        time.sleep(0.05)


def test_a_task_runs_its_job_once(tmp_path: Path) -> None:
    folder = written(tmp_path / "s", "a")
    assert run_task(folder)
    assert run_task(folder)
    assert starts(tmp_path / "s") == 1
    assert [record.status for record in read_suite(tmp_path / "s").runs] == ["ok"]
    assert json.loads((folder / EVENTS).read_text().splitlines()[-1])["code"] == 0


def test_a_crash_is_recorded_from_the_jobs_file(tmp_path: Path) -> None:
    folder = written(tmp_path / "s", "crash")
    assert not run_task(folder)
    (record,) = read_suite(tmp_path / "s").runs
    assert record.status == "failed"
    assert record.error == "exit code 1: RuntimeError: no such file: data.txt"
    assert record.data == {"sha256": "0", "train_tokens": 1, "heldout_tokens": 1}


def test_a_task_leaves_a_job_to_the_process_that_holds_its_lease(tmp_path: Path) -> None:
    folder = written(tmp_path / "s", "a")
    lease = Lease(folder)
    assert lease.take()
    assert run_task(folder, patience=1.0)
    assert starts(tmp_path / "s") == 0
    lease.release()
    assert run_task(folder, patience=1.0)
    assert starts(tmp_path / "s") == 1


def test_what_is_recorded_is_not_done_again_and_lost_weights_are_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a worker that was killed between its training and its measurement."""
    suite = tmp_path / "s"
    monkeypatch.setattr(process, "COMMAND", FAKE)
    run_fakes(suite, ["measured, killed"], Console(quiet=True))
    (folder,) = (suite / "runs").iterdir()
    assert [record.status for record in read_suite(suite).runs] == ["ok"]
    (folder / WEIGHTS).touch()
    assert run_task(folder)
    assert len(read_suite(suite).runs) == 1
    assert sorted(record.status for record in read_suite(suite).measurements) == ["failed", "ok"]
    for path in (suite / "records").iterdir():
        if '"kind":"measurement"' in path.read_text():
            path.unlink()
    (folder / WEIGHTS).unlink()
    assert run_task(folder)
    assert len(read_suite(suite).runs) == 2


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING"])
def test_a_task_that_is_stopped_stores_a_checkpoint_and_is_queued_again_if_it_still_runs(
    tmp_path: Path, state: str
) -> None:
    """Slurm sends SIGTERM near the end of a task's time, and to a task that is cancelled."""
    suite = tmp_path / "s"
    folder = written(suite, "slow")
    (tmp_path / "bin").mkdir()
    for name, does in (("squeue", f"echo {state}"), ("scontrol", f'echo "$@" > {tmp_path}/asked')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    task = in_a_process(folder, env={**os.environ, **slurm, "PATH": path})
    wait_for(suite / "slow.pid")
    assert "train" in [event.get("phase") for event in Events(folder).new()]
    task.send_signal(signal.SIGTERM)
    _, said = task.communicate(timeout=120)
    assert task.returncode == 130, said
    assert "Traceback" not in said
    assert (folder / "half_way").exists()
    asked = tmp_path / "asked"
    assert (asked.exists() and asked.read_text()) == ("requeue 7_3\n" if state == "RUNNING" else False)
    assert run_task(folder)
    assert [record.status for record in read_suite(suite).runs] == ["ok"]


@pytest.mark.parametrize("room", [100, 600])
def test_a_full_disk_ends_a_task_with_one_sentence_and_loses_nothing(tmp_path: Path, room: int) -> None:
    """The limit on a file's size stands for the disk's: room for no lease, or for no record."""
    suite = tmp_path / "s"
    folder = written(suite, "a")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    task = in_a_process(folder, preexec_fn=limit)
    _, said = task.communicate(timeout=120)
    assert task.returncode == 2
    assert [line[:9] for line in said.splitlines() if "written" in line] == ["modbench:"]
    assert "Traceback" not in said
    assert read_suite(suite).runs == []
    assert not [*suite.rglob("*.tmp")]
    assert run_task(folder)
    assert [record.status for record in read_suite(suite).runs] == ["ok"]


def test_a_folder_without_file_locks_serves(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, fcntl\n\n"
        "def refuse(*given):\n    raise OSError(errno.ENOLCK, 'No locks available')\n\n"
        "fcntl.flock = fcntl.lockf = refuse\n"
    )
    folder = written(tmp_path / "s", "a")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    task = in_a_process(folder, env={**os.environ, "PYTHONPATH": path})
    _, said = task.communicate(timeout=120)
    assert task.returncode == 0, said
    assert [record.status for record in read_suite(tmp_path / "s").runs] == ["ok"]
