"""A job reports its steps, pauses while another process measures, and stops when asked to."""

from typing import Any

import pytest

from modbench.sweep import run_job as stages
from modbench.sweep.run_job import Stage
from modbench.train.loop import StoppedError

OTHER = "the measurement of other/row (process 7)"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Measurements of another process, one per look; none once the list is empty."""
    looks: list[str | None] = []
    monkeypatch.setattr(stages, "measured_elsewhere", lambda: looks.pop(0) if looks else None)
    monkeypatch.setattr(stages, "_POLL_SECONDS", 0.0)
    return looks


def phases(told: list[dict[str, Any]]) -> list[str]:
    assert {event["event"] for event in told} == {"phase"}
    return [event["phase"] for event in told]


def test_a_step_that_was_paused_is_reported_again(elsewhere: list[str | None]) -> None:
    told: list[dict[str, Any]] = []
    stage = Stage(told.append)
    stage.begin("train")
    elsewhere += [OTHER, OTHER, OTHER]
    assert not stage.stopped()
    assert phases(told) == ["train", f"waiting for {OTHER} to end", "train"]
    assert stage.end().keys() == {"start", "train", "waiting"}


def test_a_stop_ends_a_pause(elsewhere: list[str | None]) -> None:
    elsewhere += 100 * [OTHER]
    stage = Stage(lambda event: None, lambda: len(elsewhere) < 98)
    with pytest.raises(StoppedError):
        stage.pause()
    assert len(elsewhere) == 97


def test_a_stop_is_seen_between_two_pieces_of_work(elsewhere: list[str | None]) -> None:
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
