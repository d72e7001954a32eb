"""What a cell tells of itself, and that it lets a timing go first."""

import threading
from pathlib import Path
from typing import Any

import pytest

from modbench.measure.machine_lock import Quiet
from modbench.sweep.stage import Stage
from modbench.train.loop import StoppedError


def test_a_phase_that_gave_way_is_told_again(tmp_path: Path) -> None:
    told: list[Any] = []
    quiet, other = Quiet(tmp_path), Quiet(tmp_path)
    stage = Stage(told.append, lambda: False, quiet)
    stage.begin("train")

    def time_it() -> None:
        with other.alone():
            told.append("timed")

    timing = threading.Thread(target=time_it, daemon=True)
    timing.start()
    while len(told) == 1:
        assert not stage.stopped()
    timing.join(5)
    phases = [event if isinstance(event, str) else event["phase"] for event in told]
    assert phases == ["train", "waiting for a timing to end", "timed", "train"]
    quiet.close()
    other.close()


def test_a_stop_is_seen_while_a_timing_goes_on(tmp_path: Path) -> None:
    quiet, other = Quiet(tmp_path), Quiet(tmp_path)
    timed, over = threading.Event(), threading.Event()
    stage = Stage(lambda event: None, timed.is_set, quiet)

    def time_it() -> None:
        with other.alone():
            timed.set()
            over.wait(10)

    timing = threading.Thread(target=time_it, daemon=True)
    timing.start()

    def work() -> None:
        while True:
            stage.between()

    with pytest.raises(StoppedError):
        work()
    assert timing.is_alive()
    over.set()
    timing.join(5)
    quiet.close()
    other.close()


def test_nobody_goes_first_where_the_device_is_shared(tmp_path: Path) -> None:
    quiet, other = Quiet(tmp_path), Quiet(tmp_path)
    stage = Stage(lambda event: None, lambda: False, None)
    asked: list[bool] = []

    class GaveUpError(Exception):
        pass

    def check() -> None:
        stage.between()
        asked.append(True)
        if len(asked) > 2:
            raise GaveUpError

    with pytest.raises(GaveUpError), other.alone(check):
        pytest.fail("a cell at work let go of the machine")
    quiet.close()
    other.close()


def test_a_stop_is_seen_between_two_pieces_of_work(tmp_path: Path) -> None:
    told: list[Any] = []
    stopped = False
    stage = Stage(told.append, lambda: stopped, None)
    stage.begin("audit")
    assert not stage.stopped()
    stopped = True
    assert stage.stopped()
    with pytest.raises(StoppedError):
        stage.between()
    with pytest.raises(StoppedError):
        stage.begin("downstream")
    assert told == [{"event": "phase", "phase": "audit"}]
