"""A job reports its steps, says what it waits for, and stops when asked to."""

from typing import Any

import pytest

from modbench.sweep.run_job import Stage
from modbench.train.loop import StoppedError


def phases(told: list[dict[str, Any]]) -> list[str]:
    assert {event["event"] for event in told} == {"phase"}
    return [event["phase"] for event in told]


def test_a_step_that_waited_is_reported_again() -> None:
    told: list[dict[str, Any]] = []
    stage = Stage(told.append)
    stage.begin("train")
    stage.wait("waiting for another")
    stage.wait("waiting for another")
    stage.resume()
    assert phases(told) == ["train", "waiting for another", "train"]
    assert stage.end().keys() == {"start", "train", "waiting"}


def test_a_stop_ends_a_wait() -> None:
    stage = Stage(lambda event: None, lambda: True)
    with pytest.raises(StoppedError):
        stage.wait("waiting for another")


def test_a_stop_is_seen_between_two_pieces_of_work() -> None:
    told: list[dict[str, Any]] = []
    stopped = False
    stage = Stage(told.append, lambda: stopped)
    stage.begin("audit")
    assert not stage.stopped()
    stopped = True
    assert stage.stopped()
    with pytest.raises(StoppedError):
        stage.begin("downstream")
    assert phases(told) == ["audit"]
