"""Leases of jobs: one holder at a time, on machines without common locks or clocks."""

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import SoftFileLease

from modbench.sweep import lease as lease_module
from modbench.sweep.lease import Lease, LostError


def of_another_machine(folder: Path) -> None:
    """Change the marker in ``folder`` to one of another machine."""
    marker = folder / ".lease"
    content = marker.read_text()
    before = marker.stat()
    with marker.open("r+") as file:  # in place: its holder knows it by its inode
        file.write(content.replace(f"host={os.uname().nodename}", "host=another"))
        file.truncate()
    os.utime(marker, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_lease_is_held_by_one_until_it_is_given_up(tmp_path: Path) -> None:
    first, second = Lease(tmp_path), Lease(tmp_path)
    assert first.take()
    assert not second.take()
    assert not second.free()
    first.check()
    first.release()
    assert [*tmp_path.iterdir()] == []
    assert second.free()
    assert second.take()
    with pytest.raises(LostError):
        first.check()
    first.release()  # has no effect
    second.check()
    assert not Lease(tmp_path).take()
    second.release()


@pytest.mark.processes
def test_a_lease_of_a_process_that_has_ended_is_taken_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom modbench.sweep.lease import Lease\n"
        "assert Lease(Path(sys.argv[1])).take()\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / ".lease").exists()
    assert Lease(tmp_path).take()


def test_a_lease_of_another_machine_expires_without_its_heartbeat_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the observer's own clock: that of the other machine is five minutes ahead."""
    monkeypatch.setattr(lease_module, "EXPIRY_SECONDS", 0.6)
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.1)
    first, others = Lease(tmp_path), Lease(tmp_path)
    assert first.take()
    of_another_machine(tmp_path)
    os.utime(tmp_path / ".lease", (time.time() + 300, time.time() + 300))
    began = time.monotonic()
    while time.monotonic() - began < 1.5:
        assert not others.take()  # it sees the heartbeats
        time.sleep(0.05)
    first._lock._stop_heartbeat()  # as a machine whose power has failed
    began = time.monotonic()
    while not others.take():
        time.sleep(0.05)
    assert 0.4 < time.monotonic() - began < 10
    with pytest.raises(LostError):
        first.check()
    first.release()
    others.check()  # the lost one left the marker of the new holder


@pytest.mark.processes
def test_a_process_that_was_stopped_loses_its_lease_and_notices_it(tmp_path: Path) -> None:
    """SIGSTOP, on the same machine, for longer than a lease lives; it looks before its next
    heartbeat."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom modbench.sweep import lease\n"
        "lease.EXPIRY_SECONDS, lease.BEAT_SECONDS = 0.6, 0.1\n"
        "mine = lease.Lease(Path(sys.argv[1]))\nassert mine.take()\nprint('held', flush=True)\n"
        "for _ in range(600):\n"
        "    try:\n        time.sleep(0.05)\n        mine.watch()\n"
        "    except lease.LostError:\n        print('lost')\n        break\n"
        "mine.release()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease_module, "EXPIRY_SECONDS", 0.6)
        patch.setattr(lease_module, "BEAT_SECONDS", 0.1)
        other = Lease(tmp_path)
    assert not other.take()
    holder.send_signal(signal.SIGSTOP)
    assert other.take(patience=60)
    holder.send_signal(signal.SIGCONT)
    assert holder.communicate(timeout=60)[0] == "lost\n"
    other.check()
    other.release()


def test_a_file_server_that_is_away_for_a_moment_ends_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    lease = Lease(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(SoftFileLease, "acquire", away)
        assert not lease.take()
    assert lease.take()
    lease.release()


def work(folder: Path, jobs: int, seed: int) -> None:
    """Do what no file in ``folder`` says is done, as jobs of a sweep do; be killed in between, often."""
    draws = random.Random(seed)
    for job in draws.sample(range(jobs), jobs):
        lease = Lease(folder / f"job-{job}")
        while not (folder / f"done-{job}").exists():
            if not lease.take():
                time.sleep(0.001)
                continue
            if not (folder / f"done-{job}").exists():
                if draws.random() < 0.3:
                    os.kill(os.getpid(), signal.SIGKILL)
                with open(folder / f"done-{job}", "x") as file:  # fails if it is done twice
                    file.write(str(os.getpid()))
            lease.release()


def test_many_workers_that_are_killed_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    jobs, codes, seed = 60, set(), 0
    running: list[multiprocessing.process.BaseProcess] = []
    while len([*tmp_path.glob("done-*")]) < jobs or running:
        while len(running) < 24 and len([*tmp_path.glob("done-*")]) < jobs:
            running.append(context.Process(target=work, args=(tmp_path, jobs, seed)))
            running[-1].start()
            seed += 1
        for process in [process for process in running if not process.is_alive()]:
            running.remove(process)
            codes.add(process.exitcode)
        time.sleep(0.01)
    assert codes <= {0, -signal.SIGKILL}  # 1: one job was done twice
    assert -signal.SIGKILL in codes
