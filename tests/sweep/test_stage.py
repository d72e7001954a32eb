"""A cell reports its phases, pauses while another process measures, and stops when asked to."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modbench.measure.machine_lock import MachineLock
from modbench.sweep.stage import Stage
from modbench.train.loop import StoppedError


@pytest.fixture
def locks(tmp_path: Path) -> Iterator[tuple[MachineLock, MachineLock]]:
    locks = MachineLock(tmp_path), MachineLock(tmp_path)
    yield locks
    for lock in locks:
        lock.close()


Locks = tuple[MachineLock, MachineLock]


def test_a_phase_that_was_paused_is_reported_again(locks: Locks) -> None:
    told: list[Any] = []
    lock, other = locks
    stage = Stage(told.append, lambda: False, lock)
    stage.begin("train")

    def measure() -> None:
        with other.exclusive():
            told.append("timed")

    timing = threading.Thread(target=measure, daemon=True)
    timing.start()
    while len(told) == 1:
        assert not stage.stopped()
    timing.join(5)
    phases = [event if isinstance(event, str) else event["phase"] for event in told]
    assert phases == ["train", "waiting for a timing to end", "timed", "train"]


def test_a_stop_ends_a_pause(locks: Locks) -> None:
    lock, other = locks
    timed, over = threading.Event(), threading.Event()
    stage = Stage(lambda event: None, timed.is_set, lock)

    def measure() -> None:
        with other.exclusive():
            timed.set()
            over.wait(10)

    timing = threading.Thread(target=measure, daemon=True)
    timing.start()

    def work() -> None:
        while True:
            stage.pause()
            time.sleep(0.01)

    with pytest.raises(StoppedError):
        work()
    assert timing.is_alive()
    over.set()
    timing.join(5)


def test_a_cell_on_a_gpu_keeps_the_machine(locks: Locks) -> None:
    lock, other = locks
    stage = Stage(lambda event: None, lambda: False, lock, pauses=False)
    pauses: list[bool] = []

    def poll() -> None:
        stage.pause()
        pauses.append(True)
        if len(pauses) > 2:
            raise TimeoutError

    with pytest.raises(TimeoutError), other.exclusive(poll):
        pytest.fail("a cell at work released the machine")


def test_a_stop_is_seen_between_two_pieces_of_work(locks: Locks) -> None:
    told: list[Any] = []
    stopped = False
    stage = Stage(told.append, lambda: stopped, locks[0])
    stage.begin("audit")
    assert not stage.stopped()
    stopped = True
    assert stage.stopped()
    with pytest.raises(StoppedError):
        stage.pause()
    with pytest.raises(StoppedError):
        stage.begin("downstream")
    assert told == [{"event": "phase", "phase": "audit"}]
