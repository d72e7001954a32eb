"""The worker protocol: environment, events, results, ends."""

import sys
import time
from pathlib import Path

import pytest

from modbench.sweep.process import (
    ALLOCATOR,
    EVENTS,
    MEMORY_ALLOCATOR,
    Events,
    Process,
    environment_of,
)

pytestmark = pytest.mark.processes

#: A worker whose job is ``body``, with the function that sends events.
BODY = """
import os, sys, time
from modbench.sweep.process import Events
say = Events(__import__("pathlib").Path("{folder}")).say
{body}
"""


def worked(body: str, place: Path) -> tuple[Process, Events]:
    """The worker of ``body`` once it has ended, and its events."""
    place.joinpath("worker.py").write_text(BODY.format(folder=place, body=body))
    events = Events(place)
    process = Process(place, log=place / "log", threads=3)
    while not process.ended():
        time.sleep(0.1)
    process.close()
    return process, events


@pytest.fixture(autouse=True)
def _command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modbench.sweep.process.COMMAND", (sys.executable, str(tmp_path / "worker.py")))


@pytest.mark.parametrize("kind", ["training", "ceiling", "training_memory", "inference_memory"])
def test_memory_is_measured_with_an_allocator_of_its_own(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "77")
    chosen = {**ALLOCATOR, "MALLOC_TOP_PAD_": "77"}
    expected = MEMORY_ALLOCATOR if "memory" in kind else chosen
    found = environment_of(3, kind)
    assert {name: found[name] for name in ALLOCATOR} == expected
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "3"


def test_what_is_printed_is_no_event_and_goes_to_the_log(tmp_path: Path) -> None:
    printed = '{"event": "end", "code": 0}'
    body = f"print('{printed}'); os.write(2, b'to stderr'); say({{'event': 'phase', 'phase': 'p'}})"
    process, events = worked(body, tmp_path)
    assert (process.code, events.new()) == (0, [{"event": "phase", "phase": "p"}])
    assert sorted((tmp_path / "log").read_text().split("to stderr")) == ["", f"{printed}\n"]


@pytest.mark.parametrize("code", [0, 7])
def test_what_a_worker_forked_ends_with_it(code: int, tmp_path: Path) -> None:
    late = tmp_path / "late"
    body = f"if os.fork() == 0:\n    time.sleep(3)\n    open('{late}', 'w')\nos._exit({code})"
    started = time.monotonic()
    process, _ = worked(body, tmp_path)
    assert process.death() == ("failed", f"exit code {code}, nothing in its log")
    time.sleep(max(0.0, started + 4 - time.monotonic()))
    assert not late.exists()


def test_events_are_read_as_they_come_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    """Also from a file that has begun anew since it had become large."""
    written, read = Events(tmp_path), Events(tmp_path)
    assert read.new() == []
    written.say({"event": "phase", "phase": "train"})
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"event": "st')  # a full disk
    assert read.new() == [{"event": "phase", "phase": "train"}]
    written.say({"event": "lost", "with": "the line that it follows"})
    steps = [{"event": "step", "step": step, "text": "x" * 400} for step in range(200)]
    seen = []
    for step in steps:
        written.say(step)
        seen += [event for event in read.new() if event["event"] == "step"]
    assert [event["step"] for event in seen] == [*range(200)]
    assert (tmp_path / EVENTS).stat().st_size < 40_000
    assert Events(tmp_path).new()[0] == {"event": "phase", "phase": "train"}
