"""Claims of runs: one holder at a time, on machines without common locks or clocks."""

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from modbench.sweep import claim as claim_module
from modbench.sweep.claim import Claims, LostError


def of_another_machine(path: Path) -> None:
    """Change the claim ``path`` to one of another machine."""
    content = json.loads(path.read_bytes())
    path.write_bytes(json.dumps({**content, "host": "another"}).encode().ljust(400))


def test_a_claim_is_held_by_one_until_it_is_given_up(tmp_path: Path) -> None:
    first = Claims().take(tmp_path)
    assert first is not None
    assert Claims().take(tmp_path) is None
    first.release()
    second = Claims().take(tmp_path)
    assert second is not None
    assert list(tmp_path.iterdir()) == [second.path]
    with pytest.raises(LostError):
        first.check()
    first.release()  # has no effect
    assert Claims().take(tmp_path) is None


def test_a_claim_of_a_process_that_has_ended_is_taken_at_once(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=Claims().take, args=(tmp_path,))
    process.start()
    process.join()
    assert (tmp_path / "claim-000001").exists()
    second = Claims().take(tmp_path)
    assert second is not None
    assert second.path.name == "claim-000002"


def test_a_clock_that_is_set_frees_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claims().take(tmp_path)
    assert claim is not None
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: 1.0)
    assert Claims().held(tmp_path)


def test_a_claim_of_another_machine_expires_without_its_heartbeat_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(claim_module.time, "monotonic", lambda: clock[0])
    first = Claims().take(tmp_path)
    assert first is not None
    of_another_machine(first.path)
    os.utime(first.path, (time.time() + 300, time.time() + 300))  # its clock is five minutes ahead
    others = Claims(expiry=60.0)
    assert others.take(tmp_path) is None
    clock[0] = 40.0
    first.beat()
    of_another_machine(first.path)
    assert others.take(tmp_path) is None  # it has seen the heartbeat
    clock[0] = 80.0
    assert others.take(tmp_path) is None
    clock[0] = 101.0
    assert others.take(tmp_path) is not None
    with pytest.raises(LostError):
        first.beat()
    with pytest.raises(LostError):
        first.check()


def test_a_holder_that_was_stopped_notices_that_it_has_lost_its_claim(tmp_path: Path) -> None:
    first = Claims().take(tmp_path)
    assert first is not None
    lost = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim_module, "BEAT_SECONDS", 0.05)
        with first.kept(lost.set):
            (tmp_path / "claim-000002").write_bytes(b"taken over")
            assert lost.wait(10)
    first.release()
    assert (tmp_path / "claim-000002").read_bytes() == b"taken over"  # its claim stays


def work(folder: Path, jobs: int, seed: int) -> None:
    """Do what no file in ``folder`` says is done, as jobs of a sweep do; be killed in between, often."""
    claims, draws = Claims(), random.Random(seed)
    for job in draws.sample(range(jobs), jobs):
        own = folder / f"job-{job}"
        while not (folder / f"done-{job}").exists():
            claim = claims.take(own)
            if claim is None:
                time.sleep(0.001)
                continue
            if not (folder / f"done-{job}").exists():
                if draws.random() < 0.3:
                    os.kill(os.getpid(), signal.SIGKILL)
                with open(folder / f"done-{job}", "x") as file:  # fails if it is done twice
                    file.write(str(os.getpid()))
            claim.release()


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
